//! Longshore, with its defaults.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use longshore::{Context, Router, RpcClient, RpcServer, Target, Transport};

use super::Peers;
use super::raw::EXCHANGE;
use crate::amqp::service::{Answer, CALL, CAST, FANOUT, Question, Service};

const STOPPING: Duration = Duration::from_secs(10);

pub(crate) struct Longshore {
    transport: Transport,
    servers: Vec<RpcServer>,
    client: RpcClient,
}

impl Longshore {
    pub(crate) async fn start(
        url: &str,
        topic: &str,
        servers: usize,
        service: &Arc<Service>,
    ) -> Result<Self> {
        let transport = Transport::builder(url)
            .default_exchange(EXCHANGE)
            .connect()
            .await?;
        let target = Target::topic(topic);
        let mut running = Vec::with_capacity(servers);
        for number in 0..servers {
            let target = target.clone().server(number.to_string());
            let server = RpcServer::builder(&transport, target, router(service));
            running.push(server.start().await?);
        }
        Ok(Self {
            client: RpcClient::new(&transport, target),
            servers: running,
            transport,
        })
    }
}

fn router(service: &Arc<Service>) -> Router {
    let (call, cast, fanout) = (service.clone(), service.clone(), service.clone());
    Router::new()
        .method(CALL, move |_: Context, q: Question| {
            let service = call.clone();
            async move { Ok(service.answer(q)) }
        })
        .method(CAST, move |_: Context, q: Question| {
            let service = cast.clone();
            async move {
                service.note(&q);
                Ok(())
            }
        })
        .method(FANOUT, move |_: Context, q: Question| {
            let service = fanout.clone();
            async move {
                service.refresh(&q);
                Ok(())
            }
        })
}

impl Peers for Longshore {
    async fn call(&self, question: Question) -> Result<Answer> {
        Ok(self.client.call(CALL).args(question).await?)
    }

    async fn cast(&self, question: Question) -> Result<()> {
        self.client.cast(CAST).args(question).await?;
        Ok(())
    }

    async fn fanout(&self, question: Question) -> Result<()> {
        self.client.cast(FANOUT).args(question).fanout().await?;
        Ok(())
    }

    async fn stop(&self) -> Result<()> {
        for server in &self.servers {
            server.stop(STOPPING).await?;
        }
        self.transport.close(STOPPING).await?;
        Ok(())
    }
}
