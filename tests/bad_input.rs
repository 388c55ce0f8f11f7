//! What bad input gets: one sentence, the right exit code, a terminal row, and nothing left in the cluster.
