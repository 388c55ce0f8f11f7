//! How a connector is found (being written beside this).
pub mod container;
use crate::failure::{Class, Failure};
use crate::task::Image;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Where connectors may come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Runtime {
    #[default]
    Auto,
    Docker,
    Podman,
    Python,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    pub path: PathBuf,
}

pub struct Wanted<'a> {
    pub image: &'a Image,
    pub exec: Option<&'a str>,
    pub runtime: Runtime,
    pub cache: &'a Path,
    pub environment: &'a [(String, String)],
}
pub enum Connector {
    Host { entrypoint: String, environment: Vec<(String, String)> },
    Container { tool: Tool, image: String },
}
pub struct Found {
    pub connector: Connector,
    pub how: String,
}
pub fn find(wanted: &Wanted, _: &mut dyn FnMut(&str), _: &dyn Fn() -> bool) -> Result<Found, Failure> {
    let _ = (wanted.image, wanted.cache, wanted.environment, wanted.runtime);
    let exec = wanted.exec.ok_or_else(|| Failure::new(Class::ImageNotFound, "only --exec for now"))?;
    Ok(Found {
        connector: Connector::Host { entrypoint: exec.to_owned(), environment: vec![] },
        how: format!("connector: {exec}"),
    })
}
