//! What the fuzz targets in `fuzz/` use of the program: the modules that read what others wrote. In every other build this
//! library is empty; the program is `main.rs`.

#![cfg(fuzzing)]
#![allow(dead_code, missing_docs, unused_imports, reason = "the targets use a part of these modules")]

pub mod airbyte;
pub mod contract;
pub mod db;
pub mod env;
pub mod failure;
pub mod handover;
pub mod host_rules;
pub mod http_client;
pub mod logging;
pub mod pattern;
pub mod printable;
pub mod process;
pub mod retry;
pub mod secret;
pub mod shared_folder;
pub mod sidecar;
pub mod task;

pub mod controller {
    pub mod document;
}

pub mod pod {
    mod image_errors;
    pub mod status;

    pub mod kubernetes {
        pub mod partial;
    }
}

pub mod server {
    pub mod auth;
    pub mod service;

    pub mod guard {
        pub mod body;
        pub mod budget;
        pub mod head;
        pub mod limits;
        pub mod memory;
        mod pace;
    }
}
