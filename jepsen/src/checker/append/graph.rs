//! A directed graph and its cycles: Tarjan's strongly connected components without recursion, and a short cycle of
//! each. It knows nothing of histories, but that its first nodes are operations, and the others only join them.
//!
//! Invariant: nodes are those of [`Graph::new`] and [`Graph::add_node`]; indexing by them can't fail.

use std::collections::{BTreeMap, VecDeque};

/// Edges by node.
pub(super) struct Graph {
    operations: usize,
    edges: Vec<Vec<u32>>,
}

/// Not visited yet.
const NEW: u32 = u32::MAX;

impl Graph {
    /// How many nodes may be looked at to find a short cycle of a component; one search is always made.
    const EFFORT: usize = 100_000;

    /// A graph of so many operations and no edge.
    pub(super) fn new(operations: usize) -> Self {
        Self { operations, edges: vec![Vec::new(); operations] }
    }

    /// Adds a node that is no operation.
    pub(super) fn add_node(&mut self) -> usize {
        self.edges.push(Vec::new());
        self.edges.len() - 1
    }

    /// `from` stands before `to`.
    pub(super) fn add_edge(&mut self, from: usize, to: usize) {
        self.edges[from].push(to as u32);
    }

    /// The operations on one short cycle of each strongly connected component that has any, in the cycle's order.
    pub(super) fn cycles(&self) -> Vec<Vec<usize>> {
        let components = self.components();
        let mut members: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (component, node) in components.iter().zip(0..) {
            members.entry(*component).or_default().push(node);
        }
        let loops = |node: u32| self.edges[node as usize].contains(&node);
        let is_cyclic = |nodes: &&Vec<u32>| nodes.len() > 1 || nodes.iter().any(|node| loops(*node));
        members.values().filter(is_cyclic).filter_map(|nodes| self.short_cycle(&components, nodes)).collect()
    }

    fn short_cycle(&self, components: &[u32], nodes: &[u32]) -> Option<Vec<usize>> {
        let operations = nodes.iter().copied().filter(|node| (*node as usize) < self.operations);
        let tries = (Self::EFFORT / nodes.len().max(1)).clamp(1, 32);
        operations.take(tries).filter_map(|node| self.cycle_through(components, node)).min_by_key(Vec::len)
    }

    /// The cycle through a node with the fewest operations: a search in breadth in which the other nodes cost nothing.
    fn cycle_through(&self, components: &[u32], start: u32) -> Option<Vec<usize>> {
        let mut reached_from: BTreeMap<u32, u32> = BTreeMap::new();
        let mut queue = VecDeque::from([(start, start)]);
        while let Some((node, from)) = queue.pop_front() {
            if reached_from.contains_key(&node) {
                if node == start {
                    return Some(self.walk_back(&reached_from, start, from));
                }
                continue;
            }
            reached_from.insert(node, from);
            for next in &self.edges[node as usize] {
                if components[*next as usize] != components[start as usize] {
                    continue;
                }
                if (*next as usize) < self.operations {
                    queue.push_back((*next, node));
                } else {
                    queue.push_front((*next, node));
                }
            }
        }
        None
    }

    fn walk_back(&self, reached_from: &BTreeMap<u32, u32>, start: u32, last: u32) -> Vec<usize> {
        let mut cycle = Vec::new();
        let mut node = last;
        while node != start {
            cycle.push(node as usize);
            node = reached_from.get(&node).copied().unwrap_or(start);
        }
        cycle.push(start as usize);
        cycle.retain(|node| *node < self.operations);
        cycle.reverse();
        cycle
    }

    /// The component of each node.
    fn components(&self) -> Vec<u32> {
        let count = self.edges.len();
        let (mut index, mut low) = (vec![NEW; count], vec![NEW; count]);
        let mut component = vec![NEW; count];
        let mut stack: Vec<usize> = Vec::new();
        let mut path: Vec<(usize, usize)> = Vec::new();
        let mut next = 0;
        for root in 0..count {
            if index[root] != NEW {
                continue;
            }
            path.push((root, 0));
            while let Some((node, edge)) = path.last_mut() {
                let node = *node;
                if *edge == 0 {
                    (index[node], low[node]) = (next, next);
                    next += 1;
                    stack.push(node);
                }
                let rest = self.edges[node].get(*edge).map(|to| *to as usize);
                *edge += 1;
                match rest {
                    Some(to) if index[to] == NEW => path.push((to, 0)),
                    Some(to) if component[to] == NEW => low[node] = low[node].min(index[to]),
                    Some(_) => {}
                    None => {
                        path.pop();
                        if let Some((parent, _)) = path.last() {
                            low[*parent] = low[*parent].min(low[node]);
                        }
                        if low[node] == index[node] {
                            while let Some(member) = stack.pop() {
                                component[member] = node as u32;
                                if member == node {
                                    break;
                                }
                            }
                        }
                    }
                }
            }
        }
        component
    }
}
