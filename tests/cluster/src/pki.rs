//! The cluster's certificate authority and what it signs, and the key of service account tokens.

use std::fs;
use std::net::IpAddr;

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::layout::{API_ADDRESS, Files, NODE, NODE_ADDRESS};

/// Makes everything, as PEM files: `ca`, `apiserver`, `kubelet`, `kubelet-client`, each with `.crt` and `.key`, and
/// `service-accounts`
/// as `.key` and `.pub`.
pub fn make(files: &Files) -> Result<()> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "kubernetes");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    fs::write(files.pki("ca.crt"), params.self_signed(&key)?.pem())?;
    let authority = Issuer::new(params, key);

    let addresses = |list: &[IpAddr]| list.iter().copied().map(SanType::IpAddress).collect::<Vec<_>>();
    let mut names = addresses(&[API_ADDRESS.into(), NODE_ADDRESS.into(), IpAddr::from([127, 0, 0, 1])]);
    for name in
        ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
    {
        names.push(SanType::DnsName(name.try_into()?));
    }
    let node = [vec![SanType::DnsName(NODE.try_into()?)], addresses(&[NODE_ADDRESS.into()])].concat();
    for (file, name, organization, names) in [
        ("apiserver", "kube-apiserver", None, names),
        ("kubelet", NODE, None, node),
        ("kubelet-client", "kube-apiserver-kubelet-client", Some("system:masters"), vec![]),
    ] {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(organization) = organization {
            params.distinguished_name.push(DnType::OrganizationName, organization);
        }
        params.extended_key_usages = vec![if names.is_empty() {
            ExtendedKeyUsagePurpose::ClientAuth
        } else {
            ExtendedKeyUsagePurpose::ServerAuth
        }];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.subject_alt_names = names;
        fs::write(files.pki(&format!("{file}.crt")), params.signed_by(&key, &authority)?.pem())?;
        fs::write(files.pki(&format!("{file}.key")), key.serialize_pem())?;
    }
    let key = KeyPair::generate()?;
    fs::write(files.pki("service-accounts.key"), key.serialize_pem())?;
    fs::write(files.pki("service-accounts.pub"), key.public_key_pem())?;
    Ok(())
}
