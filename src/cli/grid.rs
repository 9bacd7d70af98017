//! Columns of text, for the tables of commands.

/// A line for each row, with columns of one width each: the first `left` of them to the left, the others to the right.
pub(super) fn grid(rows: &[Vec<String>], left: usize) -> String {
    let widths = widths(rows);
    let mut text = String::new();
    for row in rows {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if column > 0 {
                text.push_str("  ");
            }
            text.push_str(&if column < left {
                format!("{cell:width$}")
            } else {
                format!("{cell:>width$}")
            });
        }
        text.push('\n');
    }
    text
}

/// The width of each column, in characters.
pub(super) fn widths(rows: &[Vec<String>]) -> Vec<usize> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    (0..columns).map(width).collect()
}
