//! A driver around the memory one, with one thing wrong.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use messaging_core::driver::{
    Accepted, Address, Capabilities, Confirm, Driver, DriverContext, Event, EventSink, Health,
    InboxAddress, ListenOptions, Listener, Lost, Message, NobodyGrade, Presence, Receipt,
    SendOptions, Subscription, TrySendError,
};
use messaging_core::options::OptionGroup;
use messaging_core::registry::{DriverRegistration, find_driver};
use messaging_core::{Error, ErrorKind, Outcome, Result, TransportUrl};
use tokio::sync::{oneshot, watch};

use crate::faults::{Fault, MUTANTS};
use crate::listener::BrokenListener;

static REGISTRATION: DriverRegistration = DriverRegistration {
    schemes: &["mutant"],
    summary: "broken on purpose",
    crate_name: env!("CARGO_PKG_NAME"),
    crate_version: env!("CARGO_PKG_VERSION"),
    options: &OptionGroup {
        name: "mutant",
        options: &[],
    },
    open,
};
messaging_core::register_driver!(REGISTRATION);

/// What driver and listeners of one instance share.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) dead: AtomicBool,
    pub(crate) stopped: AtomicBool,
}

struct Broken {
    inner: Arc<dyn Driver>,
    fault: Fault,
    url: TransportUrl,
    events: Arc<dyn EventSink>,
    max_body: usize,
    sent: AtomicU64,
    replies: AtomicU64,
    last_result: Mutex<Option<String>>,
    state: Arc<State>,
}

impl fmt::Debug for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fault {
            Fault::PrintsSecrets => write!(f, "Broken({})", self.url.to_string_with_secrets()),
            _ => write!(f, "Broken({})", self.url),
        }
    }
}

fn open(url: &TransportUrl, mut context: DriverContext) -> Result<Arc<dyn Driver>> {
    let mut below = url.clone();
    let name = below.query.remove("fault").unwrap_or_default();
    let fault = MUTANTS
        .iter()
        .find(|mutant| mutant.name == name)
        .map(|mutant| mutant.fault)
        .ok_or_else(|| Error::config(format!("no mutant \"{name}\"")))?;
    let secret = url.hosts.iter().any(|host| host.password.is_some());
    match fault {
        Fault::LogsSecrets if secret => {
            tracing::debug!("connecting to {}", url.to_string_with_secrets());
        }
        Fault::ErrsWithSecrets if secret => {
            let text = format!("refused: {}", url.to_string_with_secrets());
            return Err(Error::config(text));
        }
        _ => {}
    }
    below.scheme = "memory".to_owned();
    // The memory driver takes no such thing; the mutants that talk about it do.
    for host in &mut below.hosts {
        (host.username, host.password, host.port) = (None, None, None);
    }
    let (events, max_body) = (context.events.clone(), context.max_body);
    if matches!(
        fault,
        Fault::SwallowsTooLarge | Fault::UntypedTooLarge | Fault::CutsLargest
    ) {
        context.max_body = usize::MAX;
    }
    let inner = (find_driver("memory")?.open)(&below, context)?;
    Ok(Arc::new(Broken {
        inner,
        fault,
        url: url.clone(),
        events,
        max_body,
        sent: AtomicU64::new(0),
        replies: AtomicU64::new(0),
        last_result: Mutex::new(None),
        state: Arc::default(),
    }))
}

/// What becomes of a message.
enum Plan {
    Pass,
    Twice,
    Swallow,
    Fail(Error),
}

impl Broken {
    /// Whether this is the n-th message of its kind, and so the unlucky one.
    fn nth(counter: &AtomicU64, n: u64) -> bool {
        counter.fetch_add(1, Ordering::Relaxed) % n == n - 1
    }

    fn plan(&self, to: &mut Address, message: &mut Message, options: &mut SendOptions) -> Plan {
        let to_topic = matches!(to, Address::Topic { .. });
        let to_inbox = matches!(to, Address::Inbox(_));
        match self.fault {
            Fault::LosesSome if to_topic && Self::nth(&self.sent, 19) => return Plan::Swallow,
            Fault::DuplicatesSome if to_topic && Self::nth(&self.sent, 19) => return Plan::Twice,
            Fault::IgnoresTtl | Fault::ClaimsTtl => options.ttl = None,
            Fault::TakesInSilence => options.priority = 0,
            Fault::HidesNobody => options.report_nobody = false,
            Fault::FanoutToOne | Fault::TopicToAll | Fault::ForgetsServer | Fault::MixesTopics => {
                self.redirect(to);
            }
            Fault::SwallowsTooLarge if message.body.len() > self.max_body => return Plan::Swallow,
            Fault::UntypedTooLarge if message.body.len() > self.max_body => {
                return Plan::Fail(Error::unknown(ErrorKind::Internal, "that did not work"));
            }
            Fault::CutsLargest if message.body.len() >= self.max_body => {
                message.body.truncate(self.max_body - 1);
            }
            Fault::MangleBinary => {
                message.body = String::from_utf8_lossy(&message.body).into_owned().into();
            }
            Fault::LosesHeaders => message.headers = Default::default(),
            // Only replies of RPC's: a link behaviour that sends as much is another matter.
            Fault::LosesLargeReplies
                if to_inbox && is_reply(message) && message.body.len() > 65_536 =>
            {
                return Plan::Swallow;
            }
            Fault::LosesSomeReplies
                if to_inbox && is_reply(message) && Self::nth(&self.replies, 100) =>
            {
                return Plan::Swallow;
            }
            Fault::AnswersWrongCaller if to_inbox => self.swap_result(message),
            Fault::CastsWantReplies if to_topic && text(message).contains("wants_reply") => {
                edit(
                    message,
                    r#"{\"method\":"#,
                    r#"{\"_msg_id\":\"0123456789abcdef0123456789abcdef\",\"_reply_q\":\"memory-nobody\",\"method\":"#,
                );
            }
            Fault::FlattensErrors if to_inbox => {
                edit(message, "ValueError", "Exception");
                edit(message, "NotFound", "Exception");
            }
            Fault::DiesOfPanic if to_inbox && text(message).contains("panic") => {
                self.state.dead.store(true, Ordering::SeqCst);
            }
            Fault::BlocksCaller if text(message).contains("hold") => {
                std::thread::sleep(Duration::from_secs(2));
            }
            Fault::LiesNotSent if text(message).contains("hold") => {
                self.events.event(Event::Lost(Lost {
                    send: message.send,
                    kind: ErrorKind::Disconnected,
                    outcome: Outcome::NotSent,
                    reason: "a lie".to_owned(),
                    returned: None,
                }));
            }
            Fault::LosesDeadline => {
                options.ttl = None;
                edit(message, "_x_deadline", "_y_deadline");
                edit(message, "_x_sent", "_y_sent");
            }
            Fault::DropsRepliesOnStop if to_inbox && self.state.stopped.load(Ordering::SeqCst) => {
                return Plan::Swallow;
            }
            _ => {}
        }
        Plan::Pass
    }

    fn redirect(&self, to: &mut Address) {
        *to = match (self.fault, to.clone()) {
            (Fault::FanoutToOne, Address::Fanout { exchange, topic }) => {
                Address::Topic { exchange, topic }
            }
            (Fault::TopicToAll, Address::Topic { exchange, topic }) => {
                Address::Fanout { exchange, topic }
            }
            (
                Fault::ForgetsServer,
                Address::Server {
                    exchange, topic, ..
                },
            ) => Address::Topic { exchange, topic },
            (Fault::MixesTopics, Address::Fanout { exchange, topic }) => Address::Fanout {
                exchange,
                topic: topic.replace("-green", "").into(),
            },
            (_, same) => same,
        };
    }

    fn swap_result(&self, message: &mut Message) {
        let body = text(message);
        let (start, end) = (r#"{\"result\":"#, r#",\"failure\""#);
        let Some((head, rest)) = body.split_once(start) else {
            return;
        };
        let Some((result, tail)) = rest.split_once(end) else {
            return;
        };
        let mut last = self.last_result.lock().unwrap();
        let before = last.replace(result.to_owned());
        if let Some(before) = before.filter(|_| Self::nth(&self.replies, 50)) {
            message.body = format!("{head}{start}{before}{end}{tail}").into();
        }
    }
}

fn text(message: &Message) -> String {
    String::from_utf8_lossy(&message.body).into_owned()
}

fn is_reply(message: &Message) -> bool {
    text(message).contains("oslo.message")
}

fn edit(message: &mut Message, from: &str, to: &str) {
    let before = text(message);
    if before.contains(from) {
        message.body = before.replace(from, to).into();
    }
}

/// The receipt of a driver that lies.
fn lie(options: &SendOptions) -> Receipt {
    if options.confirm != Confirm::Accepted {
        return Receipt::Done;
    }
    let (answer, receipt) = oneshot::channel();
    answer.send(Ok(Accepted::default())).unwrap();
    Receipt::Pending(receipt)
}

#[async_trait]
impl Driver for Broken {
    fn capabilities(&self) -> Capabilities {
        let mut claimed = self.inner.capabilities();
        match self.fault {
            Fault::ClaimsLive => claimed.nobody = NobodyGrade::Live,
            Fault::ClaimsTtl => claimed.ttl = true,
            Fault::ClaimsInspect => claimed.inspect = true,
            Fault::TakesInSilence => claimed.priority = false,
            _ => {}
        }
        claimed
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.inner.health()
    }

    async fn ready(&self, deadline: Instant) -> Result<()> {
        self.inner.ready(deadline).await
    }

    fn try_send(
        &self,
        to: &Address,
        mut message: Message,
        options: &SendOptions,
    ) -> Result<Receipt, TrySendError> {
        let (mut to, mut options) = (to.clone(), options.clone());
        match self.plan(&mut to, &mut message, &mut options) {
            Plan::Swallow => return Ok(lie(&options)),
            Plan::Fail(error) => return Err(TrySendError::Failed(error)),
            Plan::Twice => drop(self.inner.try_send(&to, message.clone(), &options)),
            Plan::Pass => {}
        }
        self.inner.try_send(&to, message, &options)
    }

    async fn send(
        &self,
        to: &Address,
        mut message: Message,
        options: &SendOptions,
    ) -> Result<Receipt> {
        let (mut to, mut options) = (to.clone(), options.clone());
        match self.plan(&mut to, &mut message, &mut options) {
            Plan::Swallow => return Ok(lie(&options)),
            Plan::Fail(error) => return Err(error),
            Plan::Twice => drop(self.inner.send(&to, message.clone(), &options).await),
            Plan::Pass => {}
        }
        self.inner.send(&to, message, &options).await
    }

    async fn listen(
        &self,
        to: Subscription,
        mut options: ListenOptions,
    ) -> Result<Box<dyn Listener>> {
        if self.fault == Fault::IgnoresPrefetch {
            options.prefetch = std::num::NonZeroU32::new(1_000);
            options.concurrency = std::num::NonZeroU32::new(1_000).unwrap();
        }
        let inner = self.inner.listen(to, options).await?;
        Ok(Box::new(BrokenListener::new(
            inner,
            self.fault,
            self.state.clone(),
        )))
    }

    async fn inbox(&self) -> Result<InboxAddress> {
        self.inner.inbox().await
    }

    async fn inspect(&self, to: &Address, deadline: Instant) -> Result<Presence> {
        self.inner.inspect(to, deadline).await
    }

    async fn close(&self, deadline: Instant) -> Result<()> {
        if self.fault == Fault::HangsOnClose {
            std::future::pending::<()>().await;
        }
        self.inner.close(deadline).await
    }
}
