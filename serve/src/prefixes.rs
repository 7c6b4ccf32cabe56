//! Which prompts began alike, and the states that are kept of what they have in common. No clock, no bytes.
//!
//! A radix tree over the tokens of what was said lately, one for each tenant: nobody can find out by the time that a
//! prompt takes what others have asked. States hang at its nodes. Where a prompt leaves what was said before, a
//! *junction*, somebody has begun alike for the second time and others may for a third: the state there is kept while
//! the prompt is read. So a prompt that comes once costs no state, a system prompt costs one, and whoever sends a
//! conversation again with each turn is spared all but its last two. Recurrent states cannot be cut shorter, unlike the
//! rows of a KV cache; that junctions are what is worth keeping is what Pan et al. found (Marconi, arXiv 2411.19379, section 4).
//!
//! States give way by `GreedyDual` (Young 1994; with sizes Cao and Irani 1997), all of them being of one size: the worth of
//! one is how many tokens it spares beyond the next shorter one, counted from the worth of the last that gave way,
//! each time that it is used. What was said gives way when it was said longest ago.

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use crate::{
    auth::TenantId,
    planted::{Bug, planted},
    sessions::StateRef,
};

/// What was said, and states of it.
#[derive(Debug)]
pub struct Prefixes {
    limits: Limits,
    nodes: Vec<Node>,
    free: Vec<NodeId>,
    roots: HashMap<TenantId, NodeId>,
    n_tokens: usize,
    n_states: u32,
    /// Worth of the state that gave way last.
    inflation: u64,
    /// Counts uses.
    now: u64,
    /// Keys of states that gave way, until somebody takes them.
    dropped: Vec<u64>,
}

/// Limits of [`Prefixes`].
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// States to keep; 0 to do nothing at all.
    pub states_max: u32,
    /// Tokens to remember, of all that was said.
    pub tokens_max: u32,
    /// Fewer tokens are not worth a state.
    pub spared_min: u32,
}

/// What is known of a prompt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Found {
    /// Of the longest beginning that there is a state of, without the prompt's last token.
    pub state: Option<StateRef>,
    /// How many of its tokens are to be read before a state is worth keeping.
    pub junction: Option<u64>,
    /// Why there is no state.
    pub miss: Option<Miss>,
}

/// Why no computing is spared.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Miss {
    /// The prompt is shorter than what is worth a state.
    TooShort,
    /// Nothing that is remembered began like it.
    Unseen,
    /// Something did, for the first time: now a state is kept.
    SeenOnce,
    /// There was a state, which gave way.
    Evicted,
}

/// Tokens that there is room for, for each node: prompts that part all the time take no more memory than this allows.
const TOKENS_PER_NODE: usize = 8;

type NodeId = usize;

#[derive(Debug, Default)]
struct Node {
    parent: Option<NodeId>,
    /// Tokens from the parent to here; empty at a root alone.
    edge: Vec<u32>,
    /// Tokens from the root to here.
    depth: usize,
    /// By the first token of their edges.
    children: HashMap<u32, NodeId>,
    state: Option<Kept>,
    /// A state was here.
    was_evicted: bool,
    used: u64,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    key: u64,
    worth: u64,
}

/// Where a walk along tokens ended.
struct Walk {
    /// The last node that was reached.
    node: NodeId,
    /// Tokens that are alike; greater than the node's depth if it ended within an edge.
    alike: usize,
}

impl Prefixes {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            nodes: Vec::new(),
            free: Vec::new(),
            roots: HashMap::new(),
            n_tokens: 0,
            n_states: 0,
            inflation: 0,
            now: 0,
            dropped: Vec::new(),
        }
    }

    /// Whether it does anything.
    pub fn is_on(&self) -> bool {
        0 < self.limits.states_max
    }

    pub fn n_states(&self) -> u32 {
        self.n_states
    }

    /// What is known of a prompt, which is remembered from now on. `has` tells whether a state is still there.
    pub fn ask(&mut self, tenant: TenantId, prompt: &[u32], has: impl Fn(u64) -> bool) -> Found {
        if !self.is_on() {
            return Found { state: None, junction: None, miss: None };
        }
        let spared_min = u64::from(self.limits.spared_min);
        // The last token is read in any case: what the model says to it is wanted.
        let useful = &prompt[..prompt.len().saturating_sub(1)];
        let (alike, (state, was_evicted)) = match self.walk(tenant, useful) {
            Some(Walk { node, alike }) => (alike, self.longest(node, has)),
            None => (0, (None, false)),
        };
        let spared = state.map_or(0, |it| it.computed);
        let alike = alike as u64;
        let junction = (spared + spared_min <= alike).then_some(alike);
        let miss = match (state, junction) {
            (Some(_), _) => None,
            _ if (useful.len() as u64) < spared_min => Some(Miss::TooShort),
            _ if was_evicted => Some(Miss::Evicted),
            (None, Some(_)) => Some(Miss::SeenOnce),
            (None, None) => Some(Miss::Unseen),
        };
        self.note(tenant, prompt);
        Found { state, junction, miss }
    }

    /// Remembers what was said.
    pub fn note(&mut self, tenant: TenantId, tokens: &[u32]) {
        if self.is_on() && tokens.len() <= self.limits.tokens_max as usize {
            self.node_at(tenant, tokens);
            self.forget_oldest();
        }
    }

    /// Keeps the state `key`, which has seen `tokens`.
    pub fn keep(&mut self, tenant: TenantId, tokens: &[u32], key: u64) {
        if !self.is_on() || (self.limits.tokens_max as usize) < tokens.len() {
            return self.dropped.push(key);
        }
        let at = self.node_at(tenant, tokens);
        let worth = self.worth(at);
        let before = self.nodes[at].state.replace(Kept { key, worth });
        self.nodes[at].was_evicted = false;
        self.n_states += u32::from(before.is_none());
        self.dropped.extend(before.map(|it| it.key));
        while self.limits.states_max < self.n_states {
            let states = self.nodes.iter().enumerate().filter_map(|(i, it)| Some((i, it.state?)));
            let Some((least, kept)) = states.min_by_key(|(_, it)| it.worth) else { break };
            self.inflation = kept.worth;
            self.evict(least);
        }
        self.forget_oldest();
    }

    /// Keys of the states that are not kept any more, each once.
    pub fn take_dropped(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.dropped)
    }

    /// The state of the longest beginning that ends at `node` or above it, and whether one has given way there.
    /// Those that are lost are forgotten.
    fn longest(&mut self, node: NodeId, has: impl Fn(u64) -> bool) -> (Option<StateRef>, bool) {
        let mut was_evicted = false;
        let mut above = Some(node);
        while let Some(at) = above {
            if let Some(Kept { key, .. }) = self.nodes[at].state {
                if has(key) {
                    let worth = self.worth(at);
                    self.nodes[at].state = Some(Kept { key, worth });
                    let computed = self.nodes[at].depth as u64;
                    return (Some(StateRef { key, computed }), was_evicted);
                }
                self.evict(at);
            }
            was_evicted |= self.nodes[at].was_evicted;
            above = self.nodes[at].parent;
        }
        (None, was_evicted)
    }

    /// What the state at a node is worth when it is used now.
    fn worth(&self, at: NodeId) -> u64 {
        let mut above = self.nodes[at].parent;
        while let Some(node) = above
            && self.nodes[node].state.is_none()
        {
            above = self.nodes[node].parent;
        }
        let shorter = above.map_or(0, |it| self.nodes[it].depth);
        self.inflation + (self.nodes[at].depth - shorter) as u64
    }

    fn evict(&mut self, at: NodeId) {
        if let Some(kept) = self.nodes[at].state.take() {
            self.dropped.push(kept.key);
            self.n_states -= 1;
            self.nodes[at].was_evicted = true;
        }
    }

    /// Follows `tokens` as far as they were said; none if nothing was.
    fn walk(&self, tenant: TenantId, tokens: &[u32]) -> Option<Walk> {
        let mut walk = Walk { node: *self.roots.get(&tenant)?, alike: 0 };
        while let Some(&child) =
            tokens.get(walk.alike).and_then(|first| self.nodes[walk.node].children.get(first))
        {
            let edge = &self.nodes[child].edge;
            let rest = &tokens[walk.alike..];
            let mut alike = edge.iter().zip(rest).take_while(|(a, b)| a == b).count();
            if planted(Bug::LongPrefix) && alike + 1 == edge.len() && alike < rest.len() {
                alike += 1;
            }
            walk.alike += alike;
            if alike < edge.len() {
                break;
            }
            walk.node = child;
        }
        Some(walk)
    }

    /// The node where `tokens` end, which is made if need be.
    fn node_at(&mut self, tenant: TenantId, tokens: &[u32]) -> NodeId {
        self.now += 1;
        let Walk { mut node, alike } = match self.walk(tenant, tokens) {
            Some(walk) => walk,
            None => {
                let root = self.push(Node::default());
                self.roots.insert(tenant, root);
                Walk { node: root, alike: 0 }
            }
        };
        let depth = self.nodes[node].depth;
        if depth < alike {
            let child = self.nodes[node].children[&tokens[depth]];
            node = self.split(child, alike);
        }
        if alike < tokens.len() {
            let edge = tokens[alike..].to_vec();
            self.n_tokens += edge.len();
            let depth = tokens.len();
            let first = edge[0];
            let leaf = self.push(Node { parent: Some(node), edge, depth, ..Node::default() });
            self.nodes[node].children.insert(first, leaf);
            node = leaf;
        }
        let mut above = Some(node);
        while let Some(at) = above {
            self.nodes[at].used = self.now;
            above = self.nodes[at].parent;
        }
        node
    }

    /// Cuts the edge to `child` where `depth` tokens were said; returns the node there.
    fn split(&mut self, child: NodeId, depth: usize) -> NodeId {
        let parent = self.nodes[child].parent.expect("a root has no edge");
        let before = self.nodes[parent].depth;
        let rest = self.nodes[child].edge.split_off(depth - before);
        let edge = std::mem::replace(&mut self.nodes[child].edge, rest);
        let (first, second) = (edge[0], self.nodes[child].edge[0]);
        let children = HashMap::from([(second, child)]);
        let node = Node { parent: Some(parent), edge, depth, children, ..Node::default() };
        let middle = self.push(node);
        self.nodes[child].parent = Some(middle);
        self.nodes[parent].children.insert(first, middle);
        middle
    }

    /// Forgets what was said longest ago, until there is room for an eighth again.
    fn forget_oldest(&mut self) {
        let tokens_max = self.limits.tokens_max as usize;
        if self.n_tokens <= tokens_max && self.n_nodes() <= tokens_max / TOKENS_PER_NODE {
            return;
        }
        let tokens_left = tokens_max - tokens_max / 8;
        let mut by_use: Vec<(u64, NodeId)> =
            self.nodes.iter().enumerate().map(|(i, node)| (node.used, i)).collect();
        // A node was used whenever one below it was: of two that were used at once, the deeper goes first.
        by_use.sort_unstable_by_key(|&(used, i)| (used, usize::MAX - self.nodes[i].depth));
        for (used, at) in by_use {
            let has_room =
                self.n_tokens <= tokens_left && self.n_nodes() <= tokens_left / TOKENS_PER_NODE;
            if has_room || used == self.now {
                break;
            }
            let Some(parent) = self.nodes[at].parent else { continue };
            if !self.nodes[at].children.is_empty() {
                continue;
            }
            self.evict(at);
            let node = std::mem::take(&mut self.nodes[at]);
            self.n_tokens -= node.edge.len();
            self.nodes[parent].children.remove(&node.edge[0]);
            self.free.push(at);
        }
    }

    fn n_nodes(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    fn push(&mut self, node: Node) -> NodeId {
        if let Some(at) = self.free.pop() {
            self.nodes[at] = node;
            return at;
        }
        self.nodes.push(node);
        self.nodes.len() - 1
    }
}
