//! `aerie admin`: what operators ask of a server, at its admin listener.

use std::io::{self, Write as _};

use aerie_client::{Admin, Error, v1};
use clap::Subcommand;

use super::{
    ServerArgs,
    inventory::{idle, residence, write_session, write_table},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where the server listens to admins, see aerie-serve --admin-listen; --server is not asked
    #[arg(
        long,
        global = true,
        value_name = "ADDRESS",
        env = "AERIE_ADMIN",
        hide_env_values = true,
        default_value = "grpc://127.0.0.1:7449"
    )]
    listener: String,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List all tenants, what they have and what they may have
    Tenants,
    /// List the sessions of all tenants
    Sessions {
        /// Only those of this one, as `tenants` tells it
        #[arg(long, value_name = "NAME")]
        tenant: Option<String>,
    },
    /// Tell all about one session
    Show {
        /// As `sessions` tells it
        id: String,
    },
    /// Have the server forget sessions
    Rm {
        /// As `sessions` tells them
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Bring a session to another device of the server, also while it is generating
    Move {
        /// As `sessions` tells it
        id: String,
        /// As `sessions` tells devices
        device: String,
    },
    /// Have the server read its tenants' file again
    Reload,
    /// Have the server finish what runs, park all sessions and end
    Drain {
        /// How long running generations may take to finish; what the server is configured for by default
        #[arg(long, value_name = "SECONDS")]
        grace: Option<u32>,
    },
}

pub(super) async fn run(server: &ServerArgs, args: Args) -> anyhow::Result<()> {
    let Args { listener, command } = args;
    let (trust, credentials) = (server.trust().map_err(Error::from)?, server.credentials());
    let admin = Admin::connect(&listener, &trust, &credentials).await?;
    let mut stdout = io::stdout();
    match command {
        Command::Tenants => list_tenants(&admin).await?,
        Command::Sessions { tenant } => list_sessions(&admin, tenant.as_deref()).await?,
        Command::Show { id } => show(admin.session(&id).await?)?,
        Command::Rm { ids } => {
            for id in ids {
                let request =
                    v1::DeleteSessionRequest { session_id: id.clone(), expected_position: None };
                admin.delete_session(request).await?;
                writeln!(stdout, "{id}")?;
            }
        }
        Command::Move { id, device } => {
            let request =
                v1::MoveSessionRequest { session_id: id, device, expected_position: None };
            show(admin.move_session(request).await?)?;
        }
        Command::Reload => {
            let v1::ReloadResponse { tenants, gone } = admin.reload().await?;
            writeln!(stdout, "{tenants} tenants")?;
            for name in gone {
                writeln!(stdout, "gone: {name}")?;
            }
        }
        Command::Drain { grace } => {
            let grace_ms = grace.map(|seconds| seconds.saturating_mul(1000));
            writeln!(stdout, "{} requests are to finish", admin.drain(grace_ms).await?)?;
        }
    }
    Ok(())
}

async fn list_tenants(admin: &Admin) -> anyhow::Result<()> {
    let header = ["TENANT", "SESSIONS", "MAX", "GENERATIONS", "MAX", "TOKENS", "CERTIFICATES", ""];
    let mut rows = vec![header.map(str::to_owned)];
    let max = |max: Option<u32>| max.map_or_else(|| "-".to_owned(), |it| it.to_string());
    rows.extend(admin.tenants().await?.into_iter().map(|it| {
        let remark = match (it.listed, it.admin) {
            (false, _) => "not listed",
            (true, true) => "admin",
            (true, false) => "",
        };
        [
            if it.name.is_empty() { "everybody".to_owned() } else { it.name },
            it.sessions.to_string(),
            max(it.sessions_max),
            it.generations.to_string(),
            max(it.generations_max),
            it.tokens.to_string(),
            it.certificates.to_string(),
            remark.to_owned(),
        ]
    }));
    Ok(write_table(&rows)?)
}

async fn list_sessions(admin: &Admin, tenant: Option<&str>) -> anyhow::Result<()> {
    let header = ["SESSION", "TENANT", "NAME", "MODEL", "TOKENS", "STATE", "DEVICE", "IDLE"];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(admin.sessions(tenant).await?.into_iter().map(|it| {
        let v1::OwnedSession { session, tenant } = it;
        let it = session.unwrap_or_default();
        let (residence, idle) = (residence(&it).to_owned(), idle(&it));
        let tokens = it.position.to_string();
        [it.session_id, tenant, it.name, it.model, tokens, residence, it.device, idle]
    }));
    Ok(write_table(&rows)?)
}

fn show(owned: v1::OwnedSession) -> io::Result<()> {
    let v1::OwnedSession { session, tenant } = owned;
    let mut stdout = io::stdout();
    write_session(&mut stdout, &session.unwrap_or_default())?;
    writeln!(stdout, "tenant   {tenant}")
}
