//! Errors as people read them.

/// An error and its causes, outermost first, joined by `: `; without the system's numbers behind its words.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    without_numbers(&text)
}

/// `No such file or directory` of `No such file or directory (os error 2)`, wherever that stands.
pub fn without_numbers(text: &str) -> String {
    const BEGIN: &str = " (os error ";
    let mut parts = text.split(BEGIN);
    let mut words = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|letter: char| letter.is_ascii_digit());
        match rest.strip_prefix(')') {
            Some(rest) if rest.len() + 1 < part.len() => words.push_str(rest),
            _ => words.extend([BEGIN, part]),
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_numbers_are_left_out_and_nothing_else() {
        for (text, expected) in [
            ("No space left on device (os error 28)", "No space left on device"),
            ("a: b (os error 111): c (os error 2), d (e)", "a: b: c, d (e)"),
            ("a (os error ) b (os error x) (os error 1", "a (os error ) b (os error x) (os error 1"),
            ("", ""),
        ] {
            assert_eq!(without_numbers(text), expected);
        }
    }
}
