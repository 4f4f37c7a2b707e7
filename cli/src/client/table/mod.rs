//! Tables as kubectl prints them: cells aligned by tabs of three spaces and at least six columns, widths remembered from
//! one batch of rows to the next, nothing after the last cell.

pub mod rows;

/// Least width of a column with its padding, and the padding.
const COLUMN: (usize, usize) = (6, 3);

/// Text in aligned columns; later rows keep the widths that earlier ones needed.
#[derive(Debug, Default)]
pub struct Aligner {
    widths: Vec<usize>,
}

impl Aligner {
    /// The rows as lines. Every row has as many cells as the first.
    pub fn render(&mut self, rows: &[Vec<String>]) -> String {
        let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
        for row in &rows {
            let aligned = row.len().saturating_sub(1);
            if self.widths.len() < aligned {
                self.widths.resize(aligned, COLUMN.0);
            }
            for (width, cell) in self.widths.iter_mut().zip(&row[..aligned]) {
                *width = (*width).max(cell.chars().count() + COLUMN.1);
            }
        }
        let mut text = String::new();
        for row in &rows {
            for (index, cell) in row.iter().enumerate() {
                text.push_str(cell);
                if index + 1 < row.len() {
                    let width = self.widths.get(index).copied().unwrap_or(COLUMN.0);
                    text.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count())));
                }
            }
            text.push('\n');
        }
        text
    }
}

/// A cell on one line, and nothing that a terminal would obey.
fn printable(cell: &str) -> String {
    let (line, cut) = match cell.find(['\n', '\r', '\u{c}']) {
        Some(end) => (&cell[..end], "..."),
        None => (cell, ""),
    };
    let mut text: String = line.replace('\u{1b}', "^[").chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    text.push_str(cut);
    text
}

/// Label and text pairs and free lines, aligned as `kubectl describe` does: every block of neighbouring lines with tabs
/// has its own widths.
#[derive(Debug, Default)]
pub struct Description {
    lines: Vec<Vec<String>>,
}

impl Description {
    /// Adds a line; cells are separated by tabs, and leading spaces are part of the first cell.
    pub fn line(&mut self, text: impl AsRef<str>) {
        self.lines.push(text.as_ref().split('\t').map(printable).collect());
    }

    /// `label: text`.
    pub fn field(&mut self, label: &str, text: impl AsRef<str>) {
        self.line(format!("{label}:\t{}", text.as_ref()));
    }

    /// A map, one pair a line; `<none>` if it is empty.
    pub fn pairs(&mut self, label: &str, pairs: &[(&str, &str)]) {
        if pairs.is_empty() {
            self.field(label, "<none>");
        }
        for (index, (key, value)) in pairs.iter().enumerate() {
            let head = if index == 0 { format!("{label}:") } else { String::new() };
            self.line(format!("{head}\t{key}={value}"));
        }
    }

    /// The text, with its final newline. A column is as wide as the widest of its cells in neighbouring lines that go
    /// on after it, plus two.
    pub fn render(&self) -> String {
        let mut padded = self.lines.clone();
        let columns = self.lines.iter().map(Vec::len).max().unwrap_or(0);
        for column in 0..columns {
            let mut start = 0;
            while start < padded.len() {
                let goes_on = |line: &Vec<String>| line.len() > column + 1;
                let Some(offset) = padded[start..].iter().position(goes_on) else { break };
                start += offset;
                let length = padded[start..].iter().position(|line| !goes_on(line)).unwrap_or(padded.len() - start);
                let block = &mut padded[start..start + length];
                let width = block.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
                for line in block {
                    let missing = width - line[column].chars().count() + 2;
                    line[column].extend(std::iter::repeat_n(' ', missing));
                }
                start += length;
            }
        }
        padded.iter().map(|line| line.concat() + "\n").collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: &[&str]) -> Vec<String> {
        cells.iter().map(|&cell| cell.to_owned()).collect()
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_three_more() {
        let mut aligner = Aligner::default();
        let text =
            aligner.render(&[row(&["A", "B", "C"]), row(&["web", "80,53", "<none>"]), row(&["plain", "80", "<none>"])]);
        assert_eq!(text, "A       B       C\nweb     80,53   <none>\nplain   80      <none>\n");
        assert_eq!(aligner.render(&[row(&["x", "1", "y"])]), "x       1       y\n", "later rows keep the widths");
        assert_eq!(Aligner::default().render(&[row(&["a", "b"])]), "a     b\n", "at least six");
        assert_eq!(Aligner::default().render(&[row(&["endpoints", ""])]), "endpoints   \n");
        assert_eq!(Aligner::default().render(&[row(&["é", "b"])]), "é     b\n", "characters, not bytes");
    }

    #[test]
    fn a_cell_is_one_line_that_no_terminal_obeys() {
        assert_eq!(printable("a\nb"), "a...");
        assert_eq!(printable("\u{1b}[31mred\u{7}"), "^[[31mred ");
    }

    #[test]
    fn a_description_aligns_its_blocks() {
        let mut text = Description::default();
        text.field("Name", "web");
        text.pairs("Labels", &[("a", "b"), ("c", "d")]);
        text.pairs("Annotations", &[]);
        text.line("Port:\thttp\t80/TCP");
        text.line("TargetPort:\t8080/TCP");
        text.line("Port:\tdns\t53/UDP");
        text.line("Conditions:");
        text.line("  Type\tStatus");
        text.line("  Ready\tTrue");
        assert_eq!(
            text.render(),
            "Name:         web\nLabels:       a=b\n              c=d\nAnnotations:  <none>\nPort:         http  80/TCP\nTargetPort:   8080/TCP\nPort:         dns  53/UDP\nConditions:\n  Type   Status\n  Ready  True\n"
        );
    }
}
