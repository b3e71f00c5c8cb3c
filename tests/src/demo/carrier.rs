//! How a pod's volume comes about: by kubelet and the driver, or, where nothing can be mounted, handed to the agent
//! as a directory by the kit.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use countersign_proto::agent::Token;
use rustix::fs::{CWD, Mode, OFlags, openat};
use tonic::Status;

use crate::kubelet::{PodVolume, volume_id};
use crate::link::Link;
use crate::node::{NODE, Node, SOON, eventually};
use crate::pods::{Pod, Volume};
use crate::scratch::give_to;
use crate::tokens::AUDIENCE;

/// A pod's volume.
#[derive(Debug)]
pub(super) enum Carrier {
    /// Published by kubelet through the driver.
    Driver(PodVolume),
    /// A directory in memory that the kit hands to the agent.
    Hand(Handed),
}

/// What the kit knows of a directory it handed over.
#[derive(Debug)]
pub(super) struct Handed {
    pod: Pod,
    volume: Volume,
    directory: tempfile::TempDir,
    held: bool,
}

impl Carrier {
    /// A volume that is not published yet.
    pub(super) fn new(node: &Node, pod: &Pod, volume: Volume, mounts: bool) -> Result<Self> {
        if mounts {
            return Ok(Self::Driver(node.volume(pod, volume)));
        }
        let directory = tempfile::Builder::new().prefix("countersign-").tempdir_in("/dev/shm")?;
        give_to(directory.path(), node.confinement().uid())?;
        Ok(Self::Hand(Handed { pod: pod.clone(), volume, directory, held: false }))
    }

    /// One try to publish it, or one republish.
    pub(super) async fn publish_once(&mut self, node: &Node) -> Result<(), Status> {
        match self {
            Self::Driver(volume) => volume.publish_once().await,
            Self::Hand(handed) => handed.publish(node).await,
        }
    }

    /// Publishes it, with patience.
    pub(super) async fn publish(&mut self, node: &Node) -> Result<()> {
        match self {
            Self::Driver(volume) => Ok(volume.publish(SOON).await?),
            Self::Hand(handed) => Ok(handed.publish(node).await?),
        }
    }

    /// Kubelet's republish, again and again, faster than it does, until the agent holds the volume.
    pub(super) async fn republish_until_held(&mut self, node: &Node) -> Result<()> {
        match self {
            Self::Driver(volume) => {
                let held = eventually(SOON, "the agent holds the volume", async || {
                    node.volumes_held().await.is_ok_and(|held| held > 0.0)
                });
                tokio::select! {
                    held = held => held,
                    () = volume.republish_every(Duration::from_millis(100)..Duration::from_millis(150)) => Ok(()),
                }
            }
            Self::Hand(handed) => {
                handed.held = false;
                Ok(handed.publish(node).await?)
            }
        }
    }

    /// Where its files are.
    pub(super) fn target(&self) -> PathBuf {
        match self {
            Self::Driver(volume) => volume.target(),
            Self::Hand(handed) => handed.directory.path().to_owned(),
        }
    }

    /// Takes it away.
    pub(super) async fn unpublish(self, node: &Node) -> Result<()> {
        match self {
            Self::Driver(mut volume) => volume.unpublish(SOON).await,
            Self::Hand(handed) => {
                let mut link = Link::open(&node.layout.link).await?;
                link.forget(&volume_id(&handed.pod, &handed.volume)).await?;
                let path = handed.directory.path().to_owned();
                handed.directory.close().or_else(|_| fs::remove_dir_all(path)).context("the directory")
            }
        }
    }
}

impl Handed {
    async fn publish(&mut self, node: &Node) -> Result<(), Status> {
        let broken = |error: anyhow::Error| Status::unavailable(format!("{error:#}"));
        let mut link = Link::open(&node.layout.link).await.map_err(broken)?;
        let token = node.kubelet.cluster().token(&self.pod, NODE, AUDIENCE, 600).map_err(broken)?;
        let token = Token { audience: AUDIENCE.to_owned(), token };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory =
            openat(CWD, self.directory.path(), flags, Mode::empty()).map_err(|e| broken(e.into()))?;
        let descriptor = (!self.held).then(|| directory.as_fd());
        let attributes: &BTreeMap<_, _> = &self.volume.attributes;
        let answer =
            link.publish(&volume_id(&self.pod, &self.volume), &self.pod, attributes, token, descriptor).await;
        self.held |= answer.is_ok();
        answer
    }
}
