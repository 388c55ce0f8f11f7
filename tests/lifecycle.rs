//! Cancelling, killing, timing out, and outages in the middle.
