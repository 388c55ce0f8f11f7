//! States: what `read` takes as input and what `source_state` holds.
