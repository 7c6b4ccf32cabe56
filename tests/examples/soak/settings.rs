//! What a run is told, by the environment.

use std::{env, path::PathBuf, str::FromStr, time::Duration};

use anyhow::{Context as _, bail};

/// See the head of `main.rs`.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) run: Duration,
    pub(crate) seed: u32,
    pub(crate) durability: String,
    pub(crate) model: PathBuf,
    pub(crate) visitors: u32,
    pub(crate) sessions: u32,
    /// As the server has them; none for its default, which is one.
    pub(crate) devices: Vec<String>,
    pub(crate) out: PathBuf,
}

/// Lanes of the server, on all devices together: so few that nearly all sessions are parked.
const LANES: u32 = 4;
/// Tokens in one step.
const STEP_TOKENS: u32 = 64;
/// Bytes of states on the disk: a few hundred of the bundled model's, for more sessions than that with several each.
const STATES_BYTES: u64 = 96 << 20;
/// Of those, for what prompts have in common.
const PREFIX_BYTES: u64 = 4 << 20;
/// Longer than any script.
const LOG_TOKENS: u32 = 2048;
/// A session that nobody has used for this long is forgotten.
pub(crate) const IDLE_S: u32 = 90;

impl Settings {
    /// Reads the environment.
    pub(crate) fn from_env() -> anyhow::Result<Self> {
        let settings = Self {
            run: Duration::from_secs(var("AERIE_SOAK_SECONDS", 600)?),
            seed: var("AERIE_SOAK_SEED", 1)?,
            durability: var("AERIE_SOAK_DURABILITY", "fast".to_owned())?,
            model: var("AERIE_SOAK_MODEL", PathBuf::from("models/bundles/tales"))?,
            visitors: var("AERIE_SOAK_CLIENTS", 24)?,
            sessions: var("AERIE_SOAK_SESSIONS", 1000)?,
            devices: devices(&var("AERIE_SOAK_DEVICES", String::new())?),
            out: var("AERIE_SOAK_OUT", PathBuf::from("target/soak"))?,
        };
        if settings.sessions < 16 * settings.visitors {
            bail!("AERIE_SOAK_SESSIONS is less than 16 for each of AERIE_SOAK_CLIENTS");
        }
        if LANES < settings.n_devices() {
            bail!("AERIE_SOAK_DEVICES has more than {LANES} devices");
        }
        Ok(settings)
    }

    pub(crate) fn n_devices(&self) -> u32 {
        u32::try_from(self.devices.len().max(1)).unwrap_or(u32::MAX)
    }

    /// Sessions that a device of the server keeps: somewhat fewer than there are of it, so that some are evicted.
    pub(crate) fn sessions_max(&self) -> u32 {
        (self.sessions - self.sessions / 20) / self.n_devices()
    }

    /// Sessions that may have a name.
    pub(crate) fn names_max(&self) -> u32 {
        self.sessions / 8
    }

    /// The server's own, in TOML.
    pub(crate) fn server(&self) -> String {
        let (sessions_max, names_max) = (self.sessions_max(), self.names_max());
        let durability = &self.durability;
        let n_devices = self.n_devices();
        let (lanes, states_bytes) = (LANES / n_devices, STATES_BYTES / u64::from(n_devices));
        format!(
            "drain_grace_ms = 300\n\
             [scheduler]\nlanes_max = {lanes}\nstep_tokens_max = {STEP_TOKENS}\n\
             [pipe]\nevents_max = 8\n\
             [sessions]\nsessions_max = {sessions_max}\nstates_bytes_max = {states_bytes}\n\
             log_tokens_max = {LOG_TOKENS}\nstate_interval_tokens = 32\nstates_max = 6\n\
             durability = \"{durability}\"\nidle_s_max = {IDLE_S}\nnames_max = {names_max}\n\
             prefix_tokens_min = 8\nprefix_bytes_max = {PREFIX_BYTES}\n"
        )
    }
}

/// Names with commas between them.
fn devices(text: &str) -> Vec<String> {
    text.split(',').filter(|it| !it.is_empty()).map(str::to_owned).collect()
}

fn var<T>(name: &str, default: T) -> anyhow::Result<T>
where
    T: FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    match env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name} is {text:?}")),
        Err(_) => Ok(default),
    }
}
