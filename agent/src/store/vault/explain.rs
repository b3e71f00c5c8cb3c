//! What a pod's references need of the server, without asking it: for who writes the policies.

use super::config::{Method, Namespace, Settings, VaultConfig};
use super::events::LISTENING;
use super::mount::Mount;
use super::refusal::stanza;
use super::wanted::{Verb, Wanted};
use crate::Error;
use crate::request::Source;
use crate::spiffe::SpiffeId;

/// A store's configuration, understood; no connection.
#[derive(Debug)]
pub struct Adviser {
    store: String,
    settings: Settings,
}

/// What one read needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    /// The stanza of a policy that allows it.
    pub stanza: String,
    /// The stanza that lets its changes be heard of, if the store listens and this may be a key-value secret.
    pub hearing: Option<String>,
    /// The namespace it is asked in; none: the root.
    pub namespace: Option<String>,
    /// Whether the store's own `allow` lets it through to the server.
    pub allowed: bool,
}

impl Adviser {
    /// # Errors
    /// [`Error::Unusable`] when the configuration contradicts itself.
    pub fn new(store: &str, config: VaultConfig) -> Result<Self, Error> {
        let settings = Settings::parse(config)
            .map_err(|problem| Error::Unusable { store: store.to_owned(), problem })?;
        Ok(Self { store: store.to_owned(), settings })
    }

    /// How `id` logs in, in words.
    ///
    /// # Errors
    /// [`Error::Unusable`] if the role's template cannot be filled from `id`.
    pub fn login(&self, id: &SpiffeId) -> Result<String, Error> {
        let login = &self.settings.login;
        let role = match login.role.as_ref().map(|role| role.of(id)).transpose() {
            Ok(Some(role)) => format!("role {role}"),
            Ok(None) => "the mount's default role".to_owned(),
            Err(problem) => return Err(Error::Unusable { store: self.store.clone(), problem }),
        };
        let shown = match login.method {
            Method::Jwt | Method::Inline => format!(", audience {}", login.audience),
            Method::Spiffe | Method::Cert => String::new(),
        };
        Ok(format!("auth/{} as {role}{shown}{}", login.mount, within(&login.namespace)))
    }

    /// The stanza of a policy that lets a stream of events be opened, if the store listens.
    pub fn listening(&self) -> Option<&'static str> {
        self.settings.events.then_some(LISTENING)
    }

    fn hearing(&self, wanted: &Wanted) -> Option<String> {
        let plain = wanted.verb() == Verb::Get && wanted.parameters.is_empty();
        let leased = Mount::unknown().manner(wanted).leased;
        (self.settings.events && plain && !leased).then(|| {
            format!(
                "path \"{}\" {{ capabilities = [\"list\", \"subscribe\"] subscribe_event_types = [\"kv*\"] }}",
                wanted.path
            )
        })
    }

    /// What a read of `source` as `id` needs.
    ///
    /// # Errors
    /// [`Error::Request`] for a path or option that cannot be.
    pub fn advise(&self, id: &SpiffeId, source: &Source) -> Result<Advice, Error> {
        let wanted = Wanted::parse(source)?;
        let allow = self.settings.allow.as_ref();
        Ok(Advice {
            stanza: stanza(&wanted),
            hearing: self.hearing(&wanted),
            namespace: self.settings.namespace.join(&wanted.namespace).header().map(str::to_owned),
            allowed: allow
                .is_none_or(|rules| rules.iter().any(|rule| rule.permits(id, wanted.path.as_str()))),
        })
    }
}

fn within(namespace: &Namespace) -> String {
    namespace.header().map(|namespace| format!(" in namespace {namespace}")).unwrap_or_default()
}
