//! A stand-in for AWS as far as Vault's engine for it goes: IAM, which makes users and their keys, and STS, which lends
//! roles for a while. Both speak forms and XML, here in the clear and on loopback.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Result;

use crate::liar::{Liar, Lie, Request};

/// Who Vault is there.
pub const ROOT_KEY: &str = "AKIAROOTOFTHETESTS00";
/// The secret to it.
pub const ROOT_SECRET: &str = "the-secret-of-the-root-key";
/// The account.
const ACCOUNT: &str = "123456789012";

/// The stand-in. It ends when it is dropped.
#[derive(Debug)]
pub struct Aws {
    server: Liar,
    account: Arc<Mutex<Account>>,
}

/// What there is in the account.
#[derive(Debug, Default)]
struct Account {
    users: BTreeMap<String, User>,
    /// When the keys end that came with a role.
    lent: BTreeMap<String, SystemTime>,
    serial: u32,
}

#[derive(Debug, Default)]
struct User {
    /// Each with its secret.
    keys: BTreeMap<String, String>,
    policies: BTreeSet<String>,
}

impl Aws {
    /// An account with nobody in it, whose roles are lent for so long, whatever is asked for.
    pub async fn start(lends_for: Duration) -> Result<Self> {
        let (server, account) = (Liar::in_the_clear().await?, Arc::<Mutex<Account>>::default());
        let known = Arc::clone(&account);
        server.says(move |request| Some(lock(&known).answer(request, lends_for)));
        Ok(Self { server, account })
    }

    /// Where both services are.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// Users by their names.
    pub fn users(&self) -> Vec<String> {
        lock(&self.account).users.keys().cloned().collect()
    }

    /// The secret to a key of a user's; none: nobody has that key.
    pub fn secret(&self, key: &str) -> Option<String> {
        lock(&self.account).users.values().find_map(|user| user.keys.get(key).cloned())
    }

    /// Whether a key came with a role and has not ended yet.
    pub fn is_lent(&self, key: &str) -> bool {
        lock(&self.account).lent.get(key).is_some_and(|ends| *ends > now())
    }

    /// The actions that were asked for so far, in order. It remembers none of them any longer.
    pub fn actions(&self) -> Vec<String> {
        self.server.seen().iter().filter_map(|request| form(request).remove("Action")).collect()
    }
}

fn lock(account: &Mutex<Account>) -> MutexGuard<'_, Account> {
    account.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What IAM says where something cannot be done.
type Refusal = (u16, &'static str);

const NO_SUCH: Refusal = (404, "NoSuchEntity");

impl Account {
    fn answer(&mut self, request: &Request, lends_for: Duration) -> Lie {
        let form = form(request);
        let signed = format!("AWS4-HMAC-SHA256 Credential={ROOT_KEY}/");
        let action = form.get("Action").map(String::as_str).unwrap_or_default();
        let done = if request.header("authorization").is_some_and(|it| it.starts_with(&signed)) {
            self.act(action, &form, lends_for)
        } else {
            Err((403, "InvalidClientTokenId"))
        };
        let (status, body) = match done {
            Ok(result) => (
                200,
                format!("<{action}Response><{action}Result>{result}</{action}Result></{action}Response>"),
            ),
            Err((status, code)) => (
                status,
                format!(
                    "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{action}</Message></Error></ErrorResponse>"
                ),
            ),
        };
        Lie::answer(status, &[("Content-Type", "text/xml")], body.as_bytes())
    }

    fn user(&mut self, form: &BTreeMap<String, String>) -> Result<&mut User, Refusal> {
        self.users.get_mut(named(form, "UserName")).ok_or(NO_SUCH)
    }

    /// The inside of the result's element.
    fn act(
        &mut self,
        action: &str,
        form: &BTreeMap<String, String>,
        lends_for: Duration,
    ) -> Result<String, Refusal> {
        self.serial += 1;
        let serial = self.serial;
        let name = named(form, "UserName");
        match action {
            "CreateUser" if self.users.contains_key(name) => Err((409, "EntityAlreadyExists")),
            "CreateUser" => {
                self.users.insert(name.to_owned(), User::default());
                Ok(format!(
                    "<User><Path>/</Path><UserName>{name}</UserName><UserId>AIDA{serial:016}</UserId>\
                     <Arn>arn:aws:iam::{ACCOUNT}:user/{name}</Arn><CreateDate>{}</CreateDate></User>",
                    rfc3339(now())
                ))
            }
            "PutUserPolicy" => {
                self.user(form)?.policies.insert(named(form, "PolicyName").to_owned());
                Ok(String::new())
            }
            "CreateAccessKey" => {
                let (key, secret) = (format!("AKIA{serial:016}"), format!("secret-of-{serial}"));
                self.user(form)?.keys.insert(key.clone(), secret.clone());
                Ok(format!(
                    "<AccessKey><UserName>{name}</UserName><AccessKeyId>{key}</AccessKeyId><Status>Active</Status>\
                     <SecretAccessKey>{secret}</SecretAccessKey></AccessKey>"
                ))
            }
            "ListGroupsForUser" => self.user(form).map(|_| list("Groups", &[])),
            "ListAttachedUserPolicies" => self.user(form).map(|_| list("AttachedPolicies", &[])),
            "ListUserPolicies" => {
                let policies: Vec<_> = self.user(form)?.policies.iter().cloned().collect();
                Ok(list("PolicyNames", &policies))
            }
            "ListAccessKeys" => {
                let member = |key: &String| {
                    format!(
                        "<UserName>{name}</UserName><AccessKeyId>{key}</AccessKeyId><Status>Active</Status>"
                    )
                };
                let keys: Vec<_> = self.user(form)?.keys.keys().map(member).collect();
                Ok(list("AccessKeyMetadata", &keys))
            }
            "DeleteAccessKey" => {
                let key = named(form, "AccessKeyId");
                self.user(form)?.keys.remove(key).map(|_| String::new()).ok_or(NO_SUCH)
            }
            "DeleteUserPolicy" => {
                let policy = named(form, "PolicyName");
                if self.user(form)?.policies.remove(policy) { Ok(String::new()) } else { Err(NO_SUCH) }
            }
            "DeleteUser" => {
                let user = self.user(form)?;
                if !user.keys.is_empty() || !user.policies.is_empty() {
                    return Err((409, "DeleteConflict"));
                }
                self.users.remove(name);
                Ok(String::new())
            }
            "AssumeRole" => {
                let (key, ends) = (format!("ASIA{serial:016}"), now() + lends_for);
                self.lent.insert(key.clone(), ends);
                let (role, session) = (named(form, "RoleArn"), named(form, "RoleSessionName"));
                Ok(format!(
                    "<AssumedRoleUser><AssumedRoleId>AROA:{session}</AssumedRoleId><Arn>{role}/{session}</Arn>\
                     </AssumedRoleUser><Credentials><AccessKeyId>{key}</AccessKeyId>\
                     <SecretAccessKey>secret-of-{serial}</SecretAccessKey><SessionToken>session-{serial}</SessionToken>\
                     <Expiration>{}</Expiration></Credentials>",
                    rfc3339(ends)
                ))
            }
            "GetCallerIdentity" => Ok(format!(
                "<Arn>arn:aws:iam::{ACCOUNT}:user/vault</Arn><UserId>AIDAVAULT</UserId><Account>{ACCOUNT}</Account>"
            )),
            _ => Err((400, "InvalidAction")),
        }
    }
}

fn named<'a>(form: &'a BTreeMap<String, String>, name: &str) -> &'a str {
    form.get(name).map(String::as_str).unwrap_or_default()
}

fn list(name: &str, members: &[String]) -> String {
    let members = members.iter().fold(String::new(), |mut text, member| {
        write!(text, "<member>{member}</member>").unwrap_or_default();
        text
    });
    format!("<IsTruncated>false</IsTruncated><{name}>{members}</{name}>")
}

#[expect(clippy::disallowed_methods, reason = "what is lent ends at a time of day, as at AWS")]
fn now() -> SystemTime {
    SystemTime::now()
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

/// The fields of a body (application/x-www-form-urlencoded).
fn form(request: &Request) -> BTreeMap<String, String> {
    let body = String::from_utf8_lossy(&request.body);
    let fields = body.split('&').filter_map(|field| field.split_once('='));
    fields.map(|(name, value)| (decoded(name), decoded(value))).collect()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let hex = [rest.next().unwrap_or_default(), rest.next().unwrap_or_default()];
                std::str::from_utf8(&hex)
                    .ok()
                    .and_then(|hex| u8::from_str_radix(hex, 16).ok())
                    .unwrap_or(b'?')
            }
            other => other,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(account: &mut Account, body: &str) -> String {
        let headers =
            vec![("Authorization".to_owned(), format!("AWS4-HMAC-SHA256 Credential={ROOT_KEY}/2026/x"))];
        let request = Request { headers, body: body.as_bytes().to_vec(), ..Request::default() };
        match account.answer(&request, Duration::from_secs(900)) {
            Lie::Bytes(bytes) => String::from_utf8(bytes).unwrap(),
            other @ (Lie::Slowly(..) | Lie::Silence) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_user_goes_when_nothing_hangs_on_it() {
        let mut account = Account::default();
        assert!(
            ask(&mut account, "Action=CreateUser&UserName=a%2Fb+c").contains("<UserName>a/b c</UserName>")
        );
        let made = ask(&mut account, "Action=CreateAccessKey&UserName=a%2Fb+c");
        let (_, key) = made.split_once("<AccessKeyId>").unwrap();
        let (key, _) = key.split_once('<').unwrap();
        assert!(ask(&mut account, "Action=DeleteUser&UserName=a%2Fb+c").contains("DeleteConflict"));
        assert!(ask(&mut account, "Action=ListAccessKeys&UserName=a%2Fb+c").contains(key));
        ask(&mut account, &format!("Action=DeleteAccessKey&UserName=a%2Fb+c&AccessKeyId={key}"));
        ask(&mut account, "Action=DeleteUser&UserName=a%2Fb+c");
        assert!(account.users.is_empty());
        assert!(ask(&mut account, "Action=DeleteUser&UserName=a%2Fb+c").contains("NoSuchEntity"));
    }

    #[test]
    fn who_has_not_signed_is_refused() {
        let mut account = Account::default();
        let request = Request { body: b"Action=CreateUser&UserName=a".to_vec(), ..Request::default() };
        account.answer(&request, Duration::ZERO);
        assert!(account.users.is_empty());
    }
}
