//! `explain`: what a pod's volumes come to, from its manifest and the agent's configuration. No store is asked; an agent that
//! runs may be, for what its stores answered last.

mod manifest;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args as ClapArgs;

use crate::answers;
use crate::cache::{Answered, question};
use crate::config::ConfigFile;
use crate::request::{Content, Reference, Request, StoreNames};
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::store::allow::Rule;
use crate::store::config::StoreConfig;
use crate::store::vault::explain::Adviser;

use manifest::{Asked, Pod};

/// Arguments of `explain`.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The agent's YAML file that names the stores
    #[arg(long, env = "COUNTERSIGN_CONFIG")]
    config: PathBuf,
    /// Trust domain of the SPIFFE IDs, such as example.org
    #[arg(long, env = "COUNTERSIGN_TRUST_DOMAIN")]
    trust_domain: TrustDomain,
    /// Namespace of what names none
    #[arg(long, default_value = "default")]
    namespace: String,
    /// Socket of an agent that runs (answers.sock in its --link-dir): what its stores answered last is shown as well
    #[arg(long, value_name = "SOCKET")]
    answers: Option<PathBuf>,
    /// A manifest with pods, or with what makes pods; - for standard input
    manifest: PathBuf,
}

/// Explains every pod of the manifest on standard output.
///
/// # Errors
/// What cannot be read, and, after everything has been explained, that some of it cannot work.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let config = ConfigFile::read(&args.config)?;
    let text = read(&args.manifest).with_context(|| args.manifest.display().to_string())?;
    let pods = manifest::pods(&text, &args.namespace)
        .map_err(|problem| anyhow::anyhow!("{}: {problem}", args.manifest.display()))?;
    if pods.is_empty() {
        bail!("{}: no pod in it asks for anything of csi.countersign.dev", args.manifest.display());
    }
    let mut stores = Stores::new(config)?;
    if let Some(socket) = &args.answers {
        let context = || format!("--answers {}: is an agent running there?", socket.display());
        stores.answered = Some(answers::ask(socket).with_context(context)?);
    }
    let mut wrong = 0;
    let mut out = String::new();
    for pod in &pods {
        wrong += explain(&mut out, pod, &args.trust_domain, &stores)?;
    }
    std::io::stdout().write_all(out.as_bytes())?;
    match wrong {
        0 => Ok(()),
        1 => bail!("1 problem"),
        many => bail!("{many} problems"),
    }
}

fn read(file: &Path) -> std::io::Result<String> {
    if file != Path::new("-") {
        return std::fs::read_to_string(file);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    Ok(text)
}

/// The configured stores, as far as they can be known without being asked.
struct Stores {
    names: StoreNames,
    /// Which SVID of a pod a store is shown, where that is not the volume's.
    hints: BTreeMap<String, String>,
    known: BTreeMap<String, Known>,
    /// What an agent was answered last, if one was asked.
    answered: Option<Vec<Answered>>,
}

enum Known {
    Sops(Vec<Rule>),
    Vault(Box<Adviser>),
}

impl Stores {
    fn new(config: ConfigFile) -> anyhow::Result<Self> {
        let names = config.stores.keys().map(String::as_str).collect();
        let (mut known, mut hints) = (BTreeMap::new(), BTreeMap::new());
        for (name, store) in config.stores {
            hints.extend(store.hint().map(|hint| (name.clone(), hint.to_string())));
            let understood = match store {
                StoreConfig::Sops(sops) => Known::Sops(sops.allow),
                StoreConfig::Vault(vault) => Known::Vault(Box::new(Adviser::new(&name, *vault)?)),
            };
            known.insert(name, understood);
        }
        Ok(Self { names, hints, known, answered: None })
    }
}

/// Writes what one pod comes to, and answers how many things in it cannot work.
fn explain(out: &mut String, pod: &Pod, domain: &TrustDomain, stores: &Stores) -> anyhow::Result<usize> {
    let id = domain.service_account(&pod.namespace, &pod.service_account)?;
    writeln!(out, "{} {}/{}: {id}", pod.kind, pod.namespace, pod.name)?;
    let mut wrong = 0;
    let mut wanted: BTreeMap<String, Vec<Reference>> = BTreeMap::new();
    for Asked { volume, attributes, writable } in &pod.asked {
        writeln!(out, "\n  {volume}")?;
        if *writable {
            wrong += 1;
            writeln!(out, "    WRONG: csi.readOnly must be true")?;
        }
        let request = match Request::parse(attributes.clone(), &stores.names) {
            Ok(request) => request,
            Err(error) => {
                wrong += 1;
                writeln!(out, "    WRONG: {error}")?;
                continue;
            }
        };
        for file in &request.files {
            let what = match &file.content {
                Content::Secret(reference) => reference.to_string(),
                Content::Template(template) => {
                    let texts: BTreeSet<_> = template.calls.values().map(ToString::to_string).collect();
                    format!("a template of {}", Vec::from_iter(texts).join(", "))
                }
                Content::X509Chain => "the X.509-SVID".to_owned(),
                Content::X509Key => "its key".to_owned(),
                Content::X509Bundle => "the trust bundle".to_owned(),
                Content::X509Pair => "the X.509-SVID's key, and the X.509-SVID".to_owned(),
                Content::X509ChainDer => "the X.509-SVID, DER".to_owned(),
                Content::X509KeyDer => "its key, DER".to_owned(),
                Content::X509BundleDer => "the trust bundle, DER".to_owned(),
                Content::BundleFiles => {
                    "every trust bundle, in a file called <trust domain> before this name".to_owned()
                }
                Content::X509Pkcs12 => "the X.509-SVID and its key, PKCS#12".to_owned(),
                Content::X509BundlePkcs12 => "the trust bundle, PKCS#12".to_owned(),
                Content::X509BundleJks => "the trust bundle for Java".to_owned(),
                Content::Bundle { trust_domain, .. } => format!("the trust bundle of {trust_domain}"),
                Content::Jwt { audience } => format!("a JWT-SVID for {audience}"),
            };
            writeln!(out, "    {:<24} {what}", file.path.as_str())?;
            for reference in file.content.calls() {
                wanted.entry(reference.source.store.to_string()).or_default().push(reference.clone());
            }
        }
    }
    for (name, references) in &wanted {
        if let Some(hint) = stores.hints.get(name) {
            writeln!(
                out,
                "\n  store {name} is asked by the pod's SVID with the hint {hint:?}; what follows is for {id}"
            )?;
        }
        wrong += match stores.known.get(name) {
            Some(Known::Sops(rules)) => sops(out, name, rules, &id, references)?,
            Some(Known::Vault(adviser)) => vault(out, name, adviser, &id, references)?,
            // The request would not have been understood.
            None => 0,
        };
        if let Some(answered) = &stores.answered {
            last(out, answered, &id, references)?;
        }
    }
    writeln!(out)?;
    Ok(wrong)
}

/// Writes what was answered last to each question.
fn last(
    out: &mut String,
    answered: &[Answered],
    id: &SpiffeId,
    references: &[Reference],
) -> anyhow::Result<()> {
    writeln!(out, "    it answered last")?;
    let questions: BTreeSet<_> = references.iter().map(|reference| question(&reference.source)).collect();
    for asked in questions {
        let mine = |known: &&Answered| known.spiffe_id == id.as_str() && known.question == asked;
        let known: Vec<_> = answered.iter().filter(mine).collect();
        if known.is_empty() {
            writeln!(out, "      {asked}: nothing; no pod of this identity on that node has it")?;
        }
        for answer in known {
            writeln!(out, "      {asked}: {answer}")?;
        }
    }
    Ok(())
}

fn sops(
    out: &mut String,
    name: &str,
    rules: &[Rule],
    id: &SpiffeId,
    references: &[Reference],
) -> anyhow::Result<usize> {
    let mut wrong = 0;
    writeln!(out, "\n  store {name} (sops)")?;
    let paths: BTreeSet<_> = references.iter().map(|reference| &reference.source.path).collect();
    for path in paths {
        if rules.iter().any(|rule| rule.permits(id, path)) {
            writeln!(out, "    {path}: allowed")?;
        } else {
            wrong += 1;
            writeln!(
                out,
                "    {path}: NOT ALLOWED; {{ id: \"{id}\", paths: [\"{path}\"] }} under allow would"
            )?;
        }
    }
    Ok(wrong)
}

fn vault(
    out: &mut String,
    name: &str,
    adviser: &Adviser,
    id: &SpiffeId,
    references: &[Reference],
) -> anyhow::Result<usize> {
    let mut wrong = 0;
    let mut stanzas: BTreeSet<(Option<String>, String)> = BTreeSet::new();
    let mut hearing = stanzas.clone();
    writeln!(out, "\n  store {name} (vault)")?;
    match adviser.login(id) {
        Ok(login) => writeln!(out, "    logs in at {login}")?,
        Err(error) => {
            wrong += 1;
            writeln!(out, "    WRONG: {error}")?;
        }
    }
    for reference in references {
        match adviser.advise(id, &reference.source) {
            Ok(advice) => {
                if !advice.allowed {
                    wrong += 1;
                    writeln!(out, "    NOT ALLOWED by the store's own allow: {}", reference.source.path)?;
                }
                if let (Some(path), Some(stream)) = (advice.hearing, adviser.listening()) {
                    let stream = (advice.namespace.clone(), stream.to_owned());
                    hearing.extend([(advice.namespace.clone(), path), stream]);
                }
                stanzas.insert((advice.namespace, advice.stanza));
            }
            Err(error) => {
                wrong += 1;
                writeln!(out, "    WRONG: {error}")?;
            }
        }
    }
    writeln!(out, "    its policies have to say")?;
    write_stanzas(out, stanzas)?;
    if !hearing.is_empty() {
        writeln!(out, "    and for changes of key-value secrets to be heard of as they happen")?;
        write_stanzas(out, hearing)?;
    }
    Ok(wrong)
}

fn write_stanzas(out: &mut String, stanzas: BTreeSet<(Option<String>, String)>) -> std::fmt::Result {
    for (namespace, stanza) in stanzas {
        let namespace =
            namespace.map(|namespace| format!("   # in namespace {namespace}")).unwrap_or_default();
        writeln!(out, "      {stanza}{namespace}")?;
    }
    Ok(())
}
