//! How results are shown: tables, JSON and templates, from one description of rows.
//!
//! A list command makes one JSON object a row and names its default table; everything else (`--format`, `-q`) follows
//! from these. Source: swarm-parity 1.0.

use std::io::{self, Write};

use serde_json::{Map, Value};

use crate::template::{Blank, Template, TemplateError};

/// Spaces between two columns, as Docker's tables have them.
const GAP: usize = 3;

/// What `--format` asked for.
#[derive(Debug, Clone)]
pub enum Format {
    /// Columns with headings; the template separates columns by tabs.
    Table(Template),
    /// One JSON object a line.
    Json,
    Lines(Template),
}

impl Format {
    /// Reads the value of `--format`; `default_table` is used for none and for `table`.
    pub fn parse(format: Option<&str>, default_table: &str) -> Result<Self, TemplateError> {
        // As on Docker's command line, `\t` and `\n` may be written with a backslash.
        let unescape = |text: &str| text.replace("\\t", "\t").replace("\\n", "\n");
        match format.map(str::trim) {
            None | Some("" | "table") => Template::parse(default_table).map(Self::Table),
            Some("json") => Ok(Self::Json),
            Some("raw") => Err(TemplateError::Parse(
                "format `raw` is not supported: expected `table`, `json` or a template".to_owned(),
            )),
            Some(text) => match text.strip_prefix("table ") {
                Some(columns) => Template::parse(&unescape(columns)).map(Self::Table),
                None => Template::parse(&unescape(text)).map(Self::Lines),
            },
        }
    }
}

/// A list: its default table, the headings of its fields, and its rows.
#[derive(Debug, Clone, Copy)]
pub struct Columns {
    /// `{{.ID}}\t{{.Name}}`
    pub table: &'static str,
    /// Field and heading, for every field a row may have.
    pub headings: &'static [(&'static str, &'static str)],
}

/// Writes `rows` in the format asked for.
pub fn list(columns: Columns, format: Option<&str>, rows: &[Value]) -> anyhow::Result<()> {
    let text = render(columns, format, rows)?;
    print(&text)?;
    Ok(())
}

fn render(columns: Columns, format: Option<&str>, rows: &[Value]) -> Result<String, TemplateError> {
    let mut out = String::new();
    match Format::parse(format, columns.table)? {
        Format::Json => {
            for row in rows {
                out.push_str(&row.to_string());
                out.push('\n');
            }
        }
        Format::Lines(template) => {
            for row in rows {
                out.push_str(&template.render(row)?);
                out.push('\n');
            }
        }
        Format::Table(template) => {
            let headings: Map<String, Value> = columns
                .headings
                .iter()
                .map(|(field, heading)| ((*field).to_owned(), (*heading).into()))
                .collect();
            let mut lines = vec![template.render(&Value::Object(headings))?];
            for row in rows {
                lines.push(template.render(row)?);
            }
            out = align(&lines);
        }
    }
    Ok(out)
}

/// Pads tab-separated columns to the same width; the last column is left as it is.
pub fn align(lines: &[String]) -> String {
    let split: Vec<Vec<&str>> = lines.iter().map(|line| line.split('\t').collect()).collect();
    let columns = split.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = split.iter().filter(|cells| cells.len() > column + 1);
        cells.map(|cells| cells[column].chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for cells in &split {
        for (i, cell) in cells.iter().enumerate() {
            out.push_str(cell);
            if i + 1 < cells.len() {
                out.extend(std::iter::repeat_n(' ', widths[i] - cell.chars().count() + GAP));
            }
        }
        out.push('\n');
    }
    out
}

/// Shows whole objects: a JSON array, or a template for each. Source: `docker inspect`.
pub fn inspect(format: Option<&str>, objects: &[Value]) -> anyhow::Result<()> {
    inspect_by(format, objects, Template::render_lenient)
}

/// The same for objects whose fields have types: see [`Template::render_typed`].
pub fn inspect_typed(format: Option<&str>, objects: &[Value], blank: Blank) -> anyhow::Result<()> {
    inspect_by(format, objects, |template, object| template.render_typed(object, blank))
}

fn inspect_by(
    format: Option<&str>,
    objects: &[Value],
    render: impl Fn(&Template, &Value) -> Result<String, TemplateError>,
) -> anyhow::Result<()> {
    let text = match format {
        None | Some("" | "json") => {
            let text = if format.is_none_or(str::is_empty) {
                let mut buffer = Vec::new();
                let pretty = serde_json::ser::PrettyFormatter::with_indent(b"    ");
                serde::Serialize::serialize(
                    objects,
                    &mut serde_json::Serializer::with_formatter(&mut buffer, pretty),
                )?;
                String::from_utf8(buffer)?
            } else {
                serde_json::to_string(objects)?
            };
            text + "\n"
        }
        Some(format) => {
            let template = Template::parse(&format.replace("\\t", "\t").replace("\\n", "\n"))?;
            let mut out = String::new();
            for object in objects {
                out.push_str(&render(&template, object)?);
                out.push('\n');
            }
            out
        }
    };
    print(&text)?;
    Ok(())
}

/// Writes to standard output; a reader that went away (`| head`) is no error.
pub fn print(text: &str) -> io::Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Asks at the terminal; anything but yes is no, and so is the end of the input.
pub fn confirm(question: &str) -> anyhow::Result<bool> {
    let mut err = io::stderr();
    write!(err, "{question} [y/N] ")?;
    err.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// `3 minutes`, `About an hour`, `2 weeks`: as Docker words spans.
pub fn human_span(span: std::time::Duration) -> String {
    let seconds = span.as_secs();
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match () {
        () if seconds < 1 => "Less than a second".to_owned(),
        () if seconds == 1 => "1 second".to_owned(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".to_owned(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".to_owned(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 14 => format!("{} days", hours / 24),
        () if hours < 24 * 60 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", hours / 24 / 365),
    }
}

/// Orders texts so that `web2` comes before `web10`.
pub fn natural_cmp(a: &str, b: &str) -> std::cmp::Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        match (a.first(), b.first()) {
            (None, _) | (_, None) => return a.len().cmp(&b.len()),
            (Some(x), Some(y)) if x.is_ascii_digit() && y.is_ascii_digit() => {
                let number = |s: &[u8]| s.iter().take_while(|c| c.is_ascii_digit()).count();
                let ((x, rest_a), (y, rest_b)) = (a.split_at(number(a)), b.split_at(number(b)));
                let strip = |s: &[u8]| s.iter().position(|c| *c != b'0').map_or(0, |zeros| s.len() - zeros);
                let (x_len, y_len) = (strip(x), strip(y));
                let order = x_len.cmp(&y_len).then_with(|| x[x.len() - x_len..].cmp(&y[y.len() - y_len..]));
                if order.is_ne() {
                    return order;
                }
                (a, b) = (rest_a, rest_b);
            }
            (Some(x), Some(y)) if x == y => (a, b) = (&a[1..], &b[1..]),
            (Some(x), Some(y)) => return x.cmp(y),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    const COLUMNS: Columns = Columns {
        table: "{{.ID}}\t{{.Name}}\t{{.Tail}}",
        headings: &[("ID", "ID"), ("Name", "NAME"), ("Tail", "TAIL")],
    };

    fn check(format: Option<&str>, expected: &str) {
        let rows = [
            json!({"ID": "1", "Name": "web-frontend", "Tail": "x"}),
            json!({"ID": "12", "Name": "b", "Tail": ""}),
        ];
        assert_eq!(render(COLUMNS, format, &rows).unwrap(), expected, "{format:?}");
    }

    #[test]
    fn rows_in_every_format() {
        check(None, "ID   NAME           TAIL\n1    web-frontend   x\n12   b              \n");
        check(Some("table {{.Name}}\\t{{.ID}}"), "NAME           ID\nweb-frontend   1\nb              12\n");
        check(Some("{{.ID}}={{.Name}}"), "1=web-frontend\n12=b\n");
        check(
            Some("json"),
            "{\"ID\":\"1\",\"Name\":\"web-frontend\",\"Tail\":\"x\"}\n{\"ID\":\"12\",\"Name\":\"b\",\"Tail\":\"\"}\n",
        );
    }

    #[test]
    fn spans_are_worded_as_docker_does() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (150, "2 minutes"),
            (3600, "About an hour"),
            (7200, "2 hours"),
            (3 * 86400, "3 days"),
            (21 * 86400, "3 weeks"),
            (90 * 86400, "3 months"),
            (3 * 365 * 86400, "3 years"),
        ] {
            assert_eq!(human_span(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn names_sort_naturally() {
        let mut names = ["web10", "web2", "web", "db", "web02b", "web2a"];
        names.sort_by(|a, b| natural_cmp(a, b));
        assert_eq!(names, ["db", "web", "web2", "web2a", "web02b", "web10"]);
    }
}
