//! A call over `memory://` against tokio's channels, with the same JSON written and read by the same code.

use std::sync::Arc;
use std::time::Duration;

use longshore::driver::{Correlation, Headers};
use longshore::wire::{
    CallParts, ReplyBody, RequestParts, Times, decode_reply, decode_request, encode_reply,
    encode_request, unix_ms_now,
};
use longshore::{
    CallerContext, Context, Error, Result, Router, RpcClient, RpcServer, Target, Transport,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::Plan;
use crate::load::{self, Run};
use crate::table::{Row, median, print};

const SUBJECTS: [&str; 2] = ["channels", "longshore"];

#[derive(Serialize, Deserialize)]
struct Question {
    seqid: u64,
    host: String,
    req: String,
}

type Answer = (u64, String, String);

fn question() -> Question {
    Question {
        seqid: 1,
        host: "api-1".to_owned(),
        req: "How are you?".to_owned(),
    }
}

fn answer(q: Question) -> Answer {
    (q.seqid, q.host, "I'm fine!".to_owned())
}

pub(crate) fn run(plan: &Plan) -> std::result::Result<bool, Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let mut rows = Vec::new();
    for &in_flight in &plan.in_flight {
        let mut runs: [Vec<Run>; 2] = [Vec::new(), Vec::new()];
        // The first pair warms up.
        for pair in 0..=plan.pairs {
            for (subject, runs) in SUBJECTS.iter().zip(&mut runs) {
                if plan.only.as_deref().is_some_and(|only| only != *subject) {
                    continue;
                }
                let run = runtime.block_on(one(subject, in_flight, plan.run_time()))?;
                if plan.only.is_some() {
                    // For a profiler, which counts for the whole process.
                    eprintln!("{subject}, {in_flight} in flight: {} calls", run.calls);
                }
                if pair > 0 {
                    runs.push(run);
                }
            }
        }
        let [channels, longshore] = &runs;
        let ratios = channels
            .iter()
            .zip(longshore)
            .map(|(raw, ours)| ours.calls_per_s / raw.calls_per_s);
        let ratio = median(ratios);
        rows.push(Row::of("channels", in_flight, channels, 1.0));
        rows.push(Row::of("longshore", in_flight, longshore, ratio));
    }
    print(&rows, plan.json.as_deref())?;
    Ok(plan.only.is_some() || rows.iter().all(|row| row.ratio >= Some(plan.at_least)))
}

async fn one(subject: &str, in_flight: usize, time: Duration) -> Result<Run> {
    match subject {
        "channels" => channels(in_flight, time).await,
        _ => longshore(in_flight, time).await,
    }
}

async fn longshore(in_flight: usize, time: Duration) -> Result<Run> {
    let transport = Transport::connect("memory://bench").await?;
    let target = Target::topic("engine");
    let router = Router::new().method("health_check", async |_: Context, q: Question| {
        Ok(answer(q))
    });
    let server = RpcServer::builder(&transport, target.clone().server("one"), router)
        .concurrency(1024)
        .start()
        .await?;
    let client = RpcClient::new(&transport, target);
    let run = load::run(in_flight, time, move || {
        let call = client.call::<Answer>("health_check").args(question());
        async move { call.await.map(drop) }
    })
    .await?;
    server.stop(Duration::from_secs(5)).await?;
    transport.close(Duration::from_secs(5)).await?;
    Ok(run)
}

/// What a driver's message costs to carry is part of the baseline: the same struct goes through the channel.
struct Carried {
    body: bytes::Bytes,
    _headers: Headers,
    reply: oneshot::Sender<bytes::Bytes>,
}

async fn channels(in_flight: usize, time: Duration) -> Result<Run> {
    let (sender, mut requests) = mpsc::channel::<Carried>(4096);
    let server = tokio::spawn(async move {
        // Each request on a task of its own: handlers may await, and one must not hold up the next.
        while let Some(carried) = requests.recv().await {
            tokio::spawn(async move { serve(carried) });
        }
    });
    let context = Arc::new(CallerContext::default());
    let run = load::run(in_flight, time, move || {
        let (sender, context) = (sender.clone(), context.clone());
        async move {
            let args = serde_json::to_string(&question()).expect("a question serializes");
            let sent_ms = unix_ms_now();
            let body = encode_request(&RequestParts {
                method: "health_check",
                args: &args,
                namespace: None,
                version: None,
                call: Some(CallParts {
                    msg_id: Correlation(1),
                    reply_to: "reply_1",
                    monitor: None,
                }),
                unique_id: Correlation(2),
                context: &context,
                times: Some(Times {
                    deadline_ms: sent_ms + 60_000,
                    sent_ms,
                }),
                idempotency_key: None,
            });
            let (reply, replied) = oneshot::channel();
            let gone = |_| Error::config("the baseline's server is gone");
            sender
                .send(Carried {
                    body,
                    _headers: Headers::new(),
                    reply,
                })
                .await
                .map_err(|_| gone(()))?;
            // A call has a deadline, with or without Longshore.
            let body = tokio::time::timeout(Duration::from_secs(60), replied)
                .await
                .map_err(|_| gone(()))?;
            let reply = decode_reply(&body.map_err(|_| gone(()))?).map_err(|_| gone(()))?;
            let result = reply.result.ok_or(()).map_err(gone)?;
            let _: Answer = serde_json::from_str(result.get()).map_err(|_| gone(()))?;
            Ok(())
        }
    })
    .await?;
    server.abort();
    Ok(run)
}

fn serve(Carried { body, reply, .. }: Carried) {
    let request = decode_request(&body).expect("the baseline writes what it reads");
    let q: Question =
        serde_json::from_str(request.args()).expect("the baseline writes what it reads");
    let result = serde_json::to_string(&answer(q)).expect("an answer serializes");
    let id = request.msg_id().unwrap_or_default();
    let _ = reply.send(encode_reply(id, Correlation(7), ReplyBody::Result(&result)));
}
