//! Filters of the list calls: the same key repeated means or, different keys mean and, an unknown key is an error.
//!
//! Source: swarm-parity 1.0. `name` and `id` match prefixes, of networks any part; `label` is `key` or `key=value`.

use rswarm_api::v1;
use rswarm_types::Labels;
use tonic::Status;

/// The filters of one request, known to use only keys the call understands.
pub(crate) struct Filters<'a>(&'a [v1::Filter]);

impl<'a> Filters<'a> {
    /// Checks that every key is one of `known`.
    pub(crate) fn new(filters: &'a [v1::Filter], known: &[&str]) -> Result<Self, Status> {
        match filters.iter().find(|filter| !known.contains(&filter.key.as_str())) {
            Some(filter) => Err(Status::invalid_argument(format!(
                "invalid filter `{}`: expected one of {}",
                filter.key,
                known.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ")
            ))),
            None => Ok(Self(filters)),
        }
    }

    /// Whether `test` holds for some value of `key`; also when the key is not filtered by.
    pub(crate) fn any(&self, key: &str, test: impl FnMut(&str) -> bool) -> bool {
        let mut values = self.values(key).peekable();
        values.peek().is_none() || values.any(test)
    }

    /// Whether `text` starts with some value of `key`.
    pub(crate) fn prefix(&self, key: &str, text: &str) -> bool {
        self.any(key, |value| text.starts_with(value))
    }

    /// Whether some value of `key` is a part of `text`: at its beginning if it starts with `^`, and at its end if it ends with
    /// `$`. Of the regular expressions that Docker takes for networks these are the ones in use.
    pub(crate) fn part(&self, key: &str, text: &str) -> bool {
        self.any(key, |value| match (value.strip_prefix('^'), value.strip_suffix('$')) {
            (None, None) => text.contains(value),
            (Some(start), None) => text.starts_with(start),
            (None, Some(end)) => text.ends_with(end),
            (Some(start), Some(_)) => start.strip_suffix('$') == Some(text),
        })
    }

    /// Whether `labels` has some label of `key`.
    pub(crate) fn label(&self, key: &str, labels: &Labels) -> bool {
        self.any(key, |wanted| match wanted.split_once('=') {
            Some((name, value)) => labels.get(name).is_some_and(|held| held == value),
            None => labels.contains_key(wanted),
        })
    }

    /// The values of `key`, each read as a `T`.
    pub(crate) fn parsed<T>(&self, key: &str) -> Result<Vec<T>, Status>
    where
        T: std::str::FromStr,
        T::Err: std::fmt::Display,
    {
        let parse = |value: &str| {
            value
                .parse()
                .map_err(|error| Status::invalid_argument(format!("invalid filter `{key}`: {error}")))
        };
        self.values(key).map(parse).collect()
    }

    /// All values of `key`.
    pub(crate) fn values(&self, key: &str) -> impl Iterator<Item = &'a str> {
        let key = key.to_owned();
        self.0.iter().filter(move |f| f.key == key).flat_map(|f| f.values.iter().map(String::as_str))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(key: &str, values: &[&str]) -> v1::Filter {
        v1::Filter { key: key.to_owned(), values: values.iter().map(|&v| v.to_owned()).collect() }
    }

    #[test]
    fn same_key_is_or_and_unknown_keys_are_named() {
        let given =
            [filter("name", &["we", "db"]), filter("name", &["x"]), filter("label", &["tier=front", "gpu"])];
        let filters = Filters::new(&given, &["name", "label"]).unwrap();
        for (name, expected) in
            [("web", true), ("db-1", true), ("x", true), ("cache", false), ("my-web", false)]
        {
            assert_eq!(filters.prefix("name", name), expected, "{name}");
        }
        for (value, name, expected) in [
            ("eb", "web", true),
            ("^we", "web", true),
            ("^eb", "web", false),
            ("eb$", "web", true),
            ("we$", "web", false),
            ("^web$", "web", true),
            ("^web$", "web-1", false),
            ("^$", "web", false),
        ] {
            let given = [filter("name", &[value])];
            assert_eq!(Filters::new(&given, &["name"]).unwrap().part("name", name), expected, "{value}");
        }
        let labels = |k: &str, v: &str| Labels::from([(k.to_owned(), v.to_owned())]);
        assert!(
            filters.label("label", &labels("tier", "front")) && filters.label("label", &labels("gpu", ""))
        );
        assert!(!filters.label("label", &labels("tier", "back")));
        assert!(filters.any("role", |_| false), "a key that is not given filters nothing");

        let error = Filters::new(&[filter("nmae", &["x"])], &["id", "name"]).err().unwrap();
        assert_eq!(error.message(), "invalid filter `nmae`: expected one of `id`, `name`");
    }
}
