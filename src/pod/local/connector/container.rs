//! Placeholder.
use super::Tool;
use std::path::PathBuf;
pub struct Run<'a> {
    pub tool: &'a Tool,
    pub name: &'a str,
    pub image: &'a str,
    pub mounts: &'a [(PathBuf, &'a str, bool)],
    pub environment: &'a [(&'a str, &'a str)],
    pub cpu_millicores: u64,
    pub memory_mi: u64,
    pub grace_seconds: u64,
    pub command: &'a [String],
}
pub fn run_arguments(_: &Run) -> Vec<String> {
    vec![]
}
pub fn remove(_: &Tool, _: &str) {}
