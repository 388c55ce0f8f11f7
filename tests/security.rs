//! SECURITY.md: each row of a table with the column "held by" has an id of its own and names tests that exist.

use std::collections::BTreeSet;

use super::support::root;

/// The last column of a table whose rows name tests, as `path::test` in backticks.
const COLUMN: &str = "held by";

struct Row {
    id: String,
    tests: Vec<String>,
}

fn rows(text: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut is_named = false;
    let mut is_table = false;
    for line in text.lines() {
        let cells: Vec<&str> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
        let is_row = line.trim_start().starts_with('|');
        if !is_row {
            is_table = false;
        } else if !is_table {
            is_table = true;
            is_named = cells.last() == Some(&COLUMN);
        } else if is_named && !cells[0].starts_with("--") {
            let tests = cells[cells.len() - 1].split('`').skip(1).step_by(2).map(str::to_owned).collect();
            rows.push(Row { id: cells[0].to_owned(), tests });
        }
    }
    rows
}

/// Whether the file has a function of this name right below `#[test]` (or behind further attributes).
fn is_test(path: &str, name: &str) -> bool {
    let text = std::fs::read_to_string(root().join(path)).unwrap_or_default();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.iter().enumerate().any(|(index, line)| {
        let attributes = || lines[..index].iter().rev().take_while(|line| line.starts_with("#["));
        line.starts_with(&format!("fn {name}(")) && attributes().any(|line| *line == "#[test]")
    })
}

#[test]
fn every_row_of_the_security_tables_is_held_by_tests() {
    let text = std::fs::read_to_string(root().join("SECURITY.md")).expect("the file");
    let rows = rows(&text);
    assert!(rows.len() > 20, "{} rows", rows.len());
    let mut problems = Vec::new();
    let mut ids = BTreeSet::new();
    for Row { id, tests } in &rows {
        if id.is_empty() || !ids.insert(id) {
            problems.push(format!("{id}: the id is empty or used twice"));
        }
        if tests.is_empty() {
            problems.push(format!("{id}: no test"));
        }
        for test in tests {
            if !test.split_once("::").is_some_and(|(path, name)| is_test(path, name)) {
                problems.push(format!("{id}: no test {test}"));
            }
        }
    }
    assert!(problems.is_empty(), "SECURITY.md:\n{}", problems.join("\n"));
}
