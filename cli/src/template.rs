//! The part of Go's `text/template` that `--format` needs, over JSON values.
//!
//! Known: fields and chains (`.Spec.Name`), variables, `if`/`else`/`range`/`with`/`end`, pipelines, literals,
//! parentheses, trim markers, comments, Go's comparison and logic functions, `len index printf print println`, and
//! the helpers of Docker's command line: `json split join title lower upper pad truncate`. Not known: `define`,
//! `template`, `block` and methods; they are refused by name.
//!
//! Source: <https://pkg.go.dev/text/template>; swarm-parity 1.0.

mod eval;
mod parse;

use serde_json::Value;

/// The empty value of a field by its name: `[]`, `{}`, `""`, or `null` for an object with fields of its own; `None` for a
/// name that is not known.
pub type Blank = fn(&str) -> Option<Value>;

/// A parsed template.
#[derive(Debug, Clone)]
pub struct Template {
    nodes: Vec<parse::Node>,
}

/// Why a template cannot be read or carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("template parsing error: {0}")]
    Parse(String),
    #[error("template error: {0}")]
    Eval(String),
}

impl Template {
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        parse::parse(text).map(|nodes| Self { nodes }).map_err(TemplateError::Parse)
    }

    /// Carries the template out with `dot` as the value of `.`. A field of `dot` that does not exist is an error, one
    /// further in prints `<no value>`, as Go does for structs and maps.
    pub fn render(&self, dot: &Value) -> Result<String, TemplateError> {
        eval::render(&self.nodes, dot, Some(dot), |_| None).map_err(TemplateError::Eval)
    }

    /// Like [`Template::render`], but a field that does not exist prints `<no value>` at any depth: for whole objects,
    /// which leave out what is empty.
    pub fn render_lenient(&self, dot: &Value) -> Result<String, TemplateError> {
        eval::render(&self.nodes, dot, None, |_| None).map_err(TemplateError::Eval)
    }

    /// Like [`Template::render`] for whole objects whose fields have types: `blank` says by a field's name what an empty
    /// one is. `null` then reads as that, as Go shows a nil list or map, but to `json`. A field that does not exist is an
    /// error in each object that `blank` knows, other than those it says to be maps.
    pub fn render_typed(&self, dot: &Value, blank: Blank) -> Result<String, TemplateError> {
        eval::render(&self.nodes, dot, Some(dot), blank).map_err(TemplateError::Eval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(template: &str, expected: &str) {
        let dot = json!({
            "Name": "web", "Replicas": 3, "Zero": 0, "Empty": "", "List": ["a", "b", "c"], "None": [],
            "Labels": {"zone": "a", "tier": "x"}, "Spec": {"Task": {"Image": "nginx:1"}}, "On": true, "Ratio": 0.5,
        });
        let rendered = Template::parse(template).and_then(|t| t.render(&dot));
        assert_eq!(rendered.as_deref(), Ok(expected), "{template}");
    }

    #[test]
    fn values() {
        check("{{.Name}}: {{.Replicas}}", "web: 3");
        check("{{.Spec.Task.Image}}", "nginx:1");
        check("{{.Labels.zone}} {{.Labels.none}}", "a <no value>");
        check("{{.List}} {{.Labels}} {{.On}} {{.Ratio}}", "[a b c] map[tier:x zone:a] true 0.5");
        check(r#"{{"a\tb"}}{{`c`}}{{12}}{{true}}"#, "a\tbc12true");
        check("a  {{- .Name -}}  b", "awebb");
        check("{{/* nothing */}}x", "x");
    }

    #[test]
    fn control() {
        check("{{if .On}}y{{else}}n{{end}}{{if .Zero}}y{{else if .Empty}}e{{else}}n{{end}}", "yn");
        check("{{range .List}}<{{.}}>{{end}}{{range .None}}x{{else}}none{{end}}", "<a><b><c>none");
        check("{{range $i, $v := .List}}{{$i}}={{$v}};{{end}}", "0=a;1=b;2=c;");
        check("{{range $k, $v := .Labels}}{{$k}}={{$v}};{{end}}", "tier=x;zone=a;");
        check("{{with .Spec}}{{.Task.Image}} {{$.Name}}{{end}}", "nginx:1 web");
        check("{{$x := .Name}}{{$x}}{{$x = 5}}{{$x}}", "web5");
    }

    #[test]
    fn functions() {
        check("{{json .List}} {{json .Name}}", r#"["a","b","c"] "web""#);
        check(r#"{{join .List "-"}} {{upper .Name}} {{.Name | title | lower}}"#, "a-b-c WEB web");
        check(r#"{{index .List 1}} {{index .Labels "zone"}} {{len .List}}"#, "b a 3");
        check(r#"{{range split "x,y" ","}}{{.}} {{end}}"#, "x y ");
        check(r#"{{if and .On (eq .Name "web" "db") (gt .Replicas 2)}}yes{{end}}"#, "yes");
        check(r#"{{or .Empty "alt"}} {{not .On}} {{ne 1 2}} {{le 1 1}}"#, "alt false true true");
        check(r#"{{printf "%s-%d-%v-%q-%5s|" .Name .Replicas .On .Name "x"}}"#, "web-3-true-\"web\"-    x|");
        check(
            r#"{{printf "%.2s|%-4.1s|%03d|%5.2f|%05d" .Name .Name .Replicas 2.5 -7}}"#,
            "we|w   |003| 2.50|-0007",
        );
        check(r#"{{truncate .Name 2}} {{pad .Name 1 2}}|"#, "we  web  |");
        check("{{println .Name}}", "web\n");
    }

    #[test]
    fn empty_fields_of_a_type_show_as_in_go() {
        let blank = |field: &str| match field {
            "Config" => Some(Value::Null),
            "Cmd" => Some(json!([])),
            "Labels" => Some(json!({})),
            _ => None,
        };
        let dot = json!({ "Id": "x", "Config": { "User": "", "Cmd": null, "Labels": null } });
        let render = |template: &str| Template::parse(template).and_then(|t| t.render_typed(&dot, blank));
        for (template, expected) in [
            ("{{.Config.User}}|{{.Config.Cmd}} {{.Config.Labels}}", "|[] map[]"),
            ("{{json .Config.Cmd}}", "null"),
            (r#"{{len .Config.Cmd}}{{join .Config.Cmd " "}}{{index .Config.Labels "a"}}"#, "0"),
            ("{{if .Config.Cmd}}y{{end}}{{range .Config.Cmd}}y{{end}}{{with .Config}}{{.Cmd}}{{end}}", "[]"),
            ("{{.Config.Labels.a}}", "<no value>"),
        ] {
            assert_eq!(render(template).as_deref(), Ok(expected), "{template}");
        }
        for template in ["{{.Nope}}", "{{.Config.Nope}}"] {
            let error = render(template).unwrap_err().to_string();
            assert!(error.contains("can't evaluate field Nope"), "{template}: {error}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (template, part) in [
            ("{{.Name", "unclosed action"),
            ("{{if .On}}x", "`end`"),
            ("{{nope .Name}}", "function \"nope\" not defined"),
            ("{{end}}", "unexpected `end`"),
            ("{{.Name | }}", "missing value"),
            ("{{.Nope}}", "can't evaluate field Nope"),
            ("{{template \"x\"}}", "`template` is not supported"),
            ("{{\"a}}", "unterminated"),
        ] {
            let result =
                Template::parse(template).and_then(|t| t.render(&json!({"Name": "web", "On": true})));
            let error = result.unwrap_err().to_string();
            assert!(error.contains(part), "{template}: {error}");
        }
    }
}
