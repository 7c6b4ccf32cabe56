use std::collections::HashSet;

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;

const WHO: TenantId = TenantId::ANONYMOUS;

/// Goal: a prompt that comes once costs nothing, what two have in common is kept, and the third is spared it.
#[test]
fn what_comes_twice_is_kept_and_spares_the_third() {
    let mut it = prefixes(4, 1000);
    let prompt = |end: u32| [&[1, 2, 3, 4, 5, 6][..], &[end, end]].concat();
    assert_eq!(ask(&mut it, &prompt(7)), (None, None, Some(Miss::Unseen)));
    assert_eq!(ask(&mut it, &prompt(8)), (None, Some(6), Some(Miss::SeenOnce)));
    it.keep(WHO, &prompt(8)[..6], 100);
    assert_eq!(ask(&mut it, &prompt(9)), (Some((100, 6)), None, None));
    assert_eq!(ask(&mut it, &[1, 2, 3, 9, 9]), (None, Some(3), Some(Miss::SeenOnce)), "shorter");
    assert_eq!(ask(&mut it, &[1, 2]), (None, None, Some(Miss::TooShort)));
    assert_eq!(ask(&mut it, &prompt(9)[..7]), (Some((100, 6)), None, None));
    assert_eq!(ask(&mut it, &prompt(9)[..6]).0, None, "the last token is always read");
}

/// Goal: whoever sends a conversation again with each turn is spared all of it but the last two turns.
#[test]
fn a_conversation_that_is_sent_again_is_spared_its_past() {
    let mut it = prefixes(8, 1000);
    let (mut said, mut key, mut last_two) = (Vec::<u32>::new(), 0, [0, 0]);
    for turn in 0..6 {
        said.extend([turn; 10]);
        let Found { state, junction, .. } = it.ask(WHO, &said, |_| true);
        let spared = state.map_or(0, |it| it.computed);
        assert_eq!(spared, last_two[0], "turn {turn}");
        if let Some(junction) = junction {
            key += 1;
            it.keep(WHO, &said[..usize::try_from(junction).unwrap()], key);
        }
        said.extend([100 + turn; 5]);
        it.note(WHO, &said);
        last_two = [last_two[1], said.len() as u64];
    }
}

#[test]
fn nobody_is_spared_what_another_tenant_said() {
    let mut it = prefixes(4, 1000);
    let prompt = [5; 12];
    let (mine, theirs) = (TenantId(1), TenantId(2));
    it.ask(mine, &prompt, |_| true);
    it.keep(mine, &prompt[..11], 7);
    assert_eq!(it.ask(theirs, &prompt, |_| true).miss, Some(Miss::Unseen));
    assert_eq!(it.ask(mine, &prompt, |_| true).state, Some(StateRef { key: 7, computed: 11 }));
}

#[test]
fn a_state_that_is_lost_is_not_given() {
    let mut it = prefixes(4, 1000);
    let prompt = [5; 12];
    it.note(WHO, &prompt);
    it.keep(WHO, &prompt[..4], 1);
    it.keep(WHO, &prompt[..11], 2);
    let found = it.ask(WHO, &prompt, |key| key != 2);
    assert_eq!(found.state, Some(StateRef { key: 1, computed: 4 }));
    assert_eq!(found.junction, Some(11), "it is kept again");
    assert_eq!(it.take_dropped(), [2]);
    assert_eq!(it.ask(WHO, &prompt, |_| false).miss, Some(Miss::Evicted));
}

/// Goal: what spares little, or was used long ago, gives way first.
#[test]
fn the_least_worth_gives_way() {
    let mut it = prefixes(2, 1000);
    let long: Vec<u32> = (0..50).collect();
    let short: Vec<u32> = (100..110).collect();
    it.keep(WHO, &long, 1);
    it.keep(WHO, &short, 2);
    it.keep(WHO, &[7; 20], 3);
    assert_eq!(it.take_dropped(), [2], "it spared 10 tokens");
    // Each that is not used again is worth less beside those that come: in the end the long one goes too.
    let mut dropped = Vec::new();
    for key in 4..10 {
        it.keep(WHO, &[u32::try_from(key).unwrap(); 20], key);
        dropped.extend(it.take_dropped());
    }
    assert!(dropped.contains(&1), "{dropped:?}");
    assert_eq!(it.n_states(), 2);
}

#[test]
fn nothing_is_remembered_where_nothing_is_kept() {
    let mut it = prefixes(0, 1000);
    assert_eq!(ask(&mut it, &[1; 20]), (None, None, None));
    it.keep(WHO, &[1; 10], 5);
    assert_eq!(it.take_dropped(), [5]);
    assert_eq!(it.nodes.len(), 0);
}

/// Goal: whatever was asked and kept, the answer is that of a plain list of what was said and what is kept.
/// Method: by seed, prompts over few tokens; every state that is given has seen the beginning of the prompt, the longest
/// there is; every key that was given is kept or dropped, once.
#[test]
fn answers_are_those_of_a_list() {
    for seed in 0..300 {
        let mut rng = StdRng::seed_from_u64(seed);
        let tokens_max = [40, 300][rng.random_range(0..2)];
        let mut it = prefixes(rng.random_range(1..6), tokens_max);
        let mut kept: HashMap<u64, Vec<u32>> = HashMap::new();
        let mut said: Vec<Vec<u32>> = Vec::new();
        for key in 0..120 {
            let n = rng.random_range(1..14);
            let prompt: Vec<u32> = (0..n).map(|_| rng.random_range(0..2)).collect();
            let found = it.ask(WHO, &prompt, |_| true);
            forget(&mut kept, it.take_dropped(), seed);
            let useful = &prompt[..prompt.len() - 1];
            let alike =
                |tokens: &[u32]| tokens.iter().zip(useful).take_while(|(a, b)| a == b).count();
            let longest = kept.values().filter(|it| useful.starts_with(it)).map(Vec::len).max();
            // What was forgotten for want of memory may take states along, but never gives wrong ones.
            let given = found.state.map(|it| kept[&it.key].clone());
            assert!(given.as_ref().is_none_or(|it| useful.starts_with(it)), "seed {seed}");
            assert_eq!(given.map(|it| it.len()), longest, "seed {seed}");
            let common = said.iter().map(|it| alike(it)).max().unwrap_or(0);
            if let Some(junction) = found.junction {
                let junction = usize::try_from(junction).unwrap();
                assert!(junction <= common, "seed {seed}: nobody said that");
                it.keep(WHO, &prompt[..junction], key);
                kept.insert(key, prompt[..junction].to_vec());
                forget(&mut kept, it.take_dropped(), seed);
            }
            said.push(prompt);
            assert_eq!(it.n_states() as usize, kept.len(), "seed {seed}");
            assert!(it.n_tokens <= tokens_max as usize + 14, "seed {seed}");
            // Those of what was said just now stay: at most one for each of its tokens, and the root.
            assert!(it.n_nodes() <= tokens_max as usize / TOKENS_PER_NODE + 15, "seed {seed}");
            consistent(&it, seed);
        }
    }
}

fn forget(kept: &mut HashMap<u64, Vec<u32>>, dropped: Vec<u64>, seed: u64) {
    for key in dropped {
        assert!(kept.remove(&key).is_some(), "seed {seed}: {key} is dropped twice");
    }
}

/// Whether the tree is one: parents, depths, edges.
fn consistent(it: &Prefixes, seed: u64) {
    let free: HashSet<_> = it.free.iter().copied().collect();
    let mut n_tokens = 0;
    for (at, node) in it.nodes.iter().enumerate().filter(|(at, _)| !free.contains(at)) {
        n_tokens += node.edge.len();
        for (first, &child) in &node.children {
            let below = &it.nodes[child];
            assert_eq!((below.parent, below.edge[0]), (Some(at), *first), "seed {seed}");
            assert_eq!(below.depth, node.depth + below.edge.len(), "seed {seed}");
        }
    }
    assert_eq!(n_tokens, it.n_tokens, "seed {seed}");
}

fn prefixes(states_max: u32, tokens_max: u32) -> Prefixes {
    Prefixes::new(Limits { states_max, tokens_max, spared_min: 3 })
}

/// The state's key and depth, the junction, the reason.
fn ask(it: &mut Prefixes, prompt: &[u32]) -> (Option<(u64, u64)>, Option<u64>, Option<Miss>) {
    let Found { state, junction, miss } = it.ask(WHO, prompt, |_| true);
    (state.map(|it| (it.key, it.computed)), junction, miss)
}
