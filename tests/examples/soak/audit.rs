//! In the end every session that is left is read from its first token on, and nobody else may be there.

use std::collections::HashMap;

use aerie_client::{Client, v1::FinishReason};

use crate::{
    listen::{Listener, knock},
    surprise::Surprise,
    town::{Guest, Town},
};

/// Reads all that there is; gives how many logs were right.
pub(crate) async fn read_all(town: &Town, client: &Client) -> usize {
    let guests: HashMap<_, _> =
        town.take_all().into_iter().map(|guest| (guest.id.clone(), guest)).collect();
    match knock(town, || client.sessions()).await {
        // Those with whom something went wrong are known to be there.
        Ok(listed) if town.surprises().is_empty() => {
            for session in listed.iter().filter(|it| !guests.contains_key(&it.session_id)) {
                let (id, position) = (session.session_id.clone(), session.position);
                town.surprised(None, &Surprise::Unknown { id, position });
            }
        }
        Ok(_) => {}
        Err(source) => town.surprised(None, &Surprise::Call { what: "the list", source }),
    }
    let mut n_right = 0;
    for guest in guests.values() {
        match read(town, client, guest).await {
            Ok(()) => n_right += 1,
            Err(surprise)
                if surprise.is_not_found()
                    && town.may_be_forgotten(guest.name.as_deref(), guest.used) => {}
            Err(surprise) => town.surprised(Some(guest), &surprise),
        }
    }
    n_right
}

async fn read(town: &Town, client: &Client, guest: &Guest) -> Result<(), Surprise> {
    let mut reader = Listener::attach(town, client, &guest.id, guest.script, 0).await?;
    let _: FinishReason = reader.rest().await?;
    Surprise::unless_equal("the position in the end", guest.position, reader.position as u64)
}
