//! Messages of D-Bus, as far as systemd's interface needs them: written as method calls, read as answers and signals.
//!
//! What is read may be anything at all: every length is checked against what is there, and nothing recurses.
//!
//! Source: D-Bus specification, "Type System", "Marshaling (Wire Format)", "Message Protocol".

/// The longest message that is read. Ours are short; D-Bus would allow 128 MiB.
pub(super) const MESSAGE_MAX: usize = 1 << 20;
/// Byte order, type, flags, version, body length, serial, and the length of the fields.
pub(super) const PROLOGUE: usize = 16;

pub(super) const METHOD_CALL: u8 = 1;
pub(super) const METHOD_RETURN: u8 = 2;
pub(super) const SIGNAL: u8 = 4;

/// A value with its type, as properties of units have them.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Bool(bool),
    I16(i16),
    U16(u16),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    F64(f64),
    Text(String),
    Bytes(Vec<u8>),
    Numbers(Vec<u32>),
    Texts(Vec<String>),
    Pairs(Vec<(String, String)>),
}

/// A property of a unit.
pub type Property = (String, Value);

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Self::Bool(_) => "b",
            Self::I16(_) => "n",
            Self::U16(_) => "q",
            Self::I32(_) => "i",
            Self::U32(_) => "u",
            Self::I64(_) => "x",
            Self::U64(_) => "t",
            Self::F64(_) => "d",
            Self::Text(_) => "s",
            Self::Bytes(_) => "ay",
            Self::Numbers(_) => "au",
            Self::Texts(_) => "as",
            Self::Pairs(_) => "a(ss)",
        }
    }
}

/// The body of a message, or its header, being written: little end first.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    /// A number, which stands at a multiple of its size.
    fn number<const N: usize>(&mut self, number: [u8; N]) {
        self.align(N);
        self.bytes.extend(number);
    }

    pub fn u32(&mut self, number: u32) {
        self.number(number.to_le_bytes());
    }

    pub fn bool(&mut self, is_so: bool) {
        self.u32(is_so.into());
    }

    pub fn text(&mut self, text: &str) {
        self.u32(text.len() as u32);
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
    }

    fn signature(&mut self, signature: &str) {
        self.bytes.push(signature.len() as u8);
        self.bytes.extend(signature.as_bytes());
        self.bytes.push(0);
    }

    /// `elements` of a type that stands at multiples of `alignment`. The length does not count what aligns the first.
    pub fn array<T>(&mut self, alignment: usize, elements: &[T], write: impl Fn(&mut Self, &T)) {
        self.u32(0);
        let length_at = self.bytes.len() - 4;
        self.align(alignment);
        let start = self.bytes.len();
        for element in elements {
            self.align(alignment);
            write(self, element);
        }
        let length = (self.bytes.len() - start) as u32;
        self.bytes[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    }

    pub fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Bool(is_so) => self.bool(*is_so),
            Value::I16(number) => self.number(number.to_le_bytes()),
            Value::U16(number) => self.number(number.to_le_bytes()),
            Value::I32(number) => self.number(number.to_le_bytes()),
            Value::U32(number) => self.number(number.to_le_bytes()),
            Value::I64(number) => self.number(number.to_le_bytes()),
            Value::U64(number) => self.number(number.to_le_bytes()),
            Value::F64(number) => self.number(number.to_le_bytes()),
            Value::Text(text) => self.text(text),
            Value::Bytes(bytes) => self.array(1, bytes, |out, byte| out.bytes.push(*byte)),
            Value::Numbers(numbers) => self.array(4, numbers, |out, number| out.u32(*number)),
            Value::Texts(texts) => self.array(4, texts, |out, text| out.text(text)),
            Value::Pairs(pairs) => self.array(8, pairs, |out, (first, second)| {
                out.text(first);
                out.text(second);
            }),
        }
    }

    /// `a(sv)`
    pub fn properties(&mut self, properties: &[Property]) {
        self.array(8, properties, |out, (name, value)| {
            out.text(name);
            out.variant(value);
        });
    }
}

/// Whom a call is for, and what it is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address<'a> {
    pub destination: &'a str,
    pub path: &'a str,
    pub interface: &'a str,
    pub member: &'a str,
}

/// A method call. `signature` says what `write` puts into the body.
pub(super) fn call(
    serial: u32,
    to: Address<'_>,
    signature: &str,
    write: impl FnOnce(&mut Writer),
) -> Vec<u8> {
    let mut body = Writer::default();
    write(&mut body);
    let mut out = Writer::default();
    out.bytes.extend([b'l', METHOD_CALL, 0, 1]);
    out.u32(body.bytes.len() as u32);
    out.u32(serial);
    let mut fields =
        vec![(1, "o", to.path), (2, "s", to.interface), (3, "s", to.member), (6, "s", to.destination)];
    if !signature.is_empty() {
        fields.push((8, "g", signature));
    }
    out.array(8, &fields, |out, (code, kind, text)| {
        out.bytes.push(*code);
        out.signature(kind);
        if *kind == "g" { out.signature(text) } else { out.text(text) }
    });
    out.align(8);
    out.bytes.extend(body.bytes);
    out.bytes
}

/// What came from the other end.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Message {
    pub kind: u8,
    /// The call that it answers.
    pub reply_to: Option<u32>,
    pub member: Option<String>,
    pub error_name: Option<String>,
    big_endian: bool,
    body: Vec<u8>,
}

/// What is read is not what the specification says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed D-Bus message: {0}")]
pub(super) struct Malformed(&'static str);

/// How long a message is in all that begins like this.
pub(super) fn length(prologue: &[u8; PROLOGUE]) -> Result<usize, Malformed> {
    let mut reader = Reader::new(prologue, is_big_endian(prologue[0])?);
    reader.at = 4;
    let body = reader.u32()? as usize;
    reader.u32()?;
    let fields = reader.u32()? as usize;
    let length = PROLOGUE.saturating_add(fields).next_multiple_of(8).saturating_add(body);
    if length > MESSAGE_MAX {
        return Err(Malformed("it is longer than anything that was asked for"));
    }
    Ok(length)
}

fn is_big_endian(mark: u8) -> Result<bool, Malformed> {
    match mark {
        b'l' => Ok(false),
        b'B' => Ok(true),
        _ => Err(Malformed("its byte order is neither `l` nor `B`")),
    }
}

impl Message {
    /// Reads a whole message. Header fields that are of no use here are passed over.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let prologue = bytes.first_chunk::<PROLOGUE>().ok_or(Malformed("it ends in its header"))?;
        if length(prologue)? != bytes.len() {
            return Err(Malformed("it is not as long as it says"));
        }
        let big_endian = is_big_endian(bytes[0])?;
        let mut message = Self { kind: bytes[1], big_endian, ..Self::default() };
        let mut reader = Reader::new(bytes, big_endian);
        reader.at = PROLOGUE - 4;
        let end = reader.u32()? as usize + PROLOGUE;
        while reader.at < end {
            reader.align(8)?;
            let code = reader.byte()?;
            match (code, reader.signature()?) {
                (3, "s") => message.member = Some(reader.text()?.to_owned()),
                (4, "s") => message.error_name = Some(reader.text()?.to_owned()),
                (5, "u") => message.reply_to = Some(reader.u32()?),
                (_, kind) => reader.skip(kind)?,
            }
        }
        if reader.at > end {
            return Err(Malformed("a header field is longer than all of them"));
        }
        reader.at = end.next_multiple_of(8);
        message.body = bytes.get(reader.at..).unwrap_or_default().to_vec();
        Ok(message)
    }

    /// The values in the body, from the first on; each is read as whoever asked for it expects it.
    pub fn values(&self) -> Reader<'_> {
        Reader::new(&self.body, self.big_endian)
    }
}

/// Values being read.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    big_endian: bool,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8], big_endian: bool) -> Self {
        Self { bytes, at: 0, big_endian }
    }

    fn align(&mut self, to: usize) -> Result<(), Malformed> {
        self.at = self.at.next_multiple_of(to);
        Ok(())
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let end = self.at.checked_add(count).ok_or(Malformed("a length is too large"))?;
        let taken = self.bytes.get(self.at..end).ok_or(Malformed("a value goes beyond its end"))?;
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        self.take(1).map(|bytes| bytes[0])
    }

    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.align(4)?;
        let bytes = self.take(4)?.try_into().unwrap_or_default();
        Ok(if self.big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    /// A string or the path of an object.
    pub fn text(&mut self) -> Result<&'a str, Malformed> {
        let length = self.u32()? as usize;
        self.terminated(length)
    }

    fn signature(&mut self) -> Result<&'a str, Malformed> {
        let length = self.byte()?.into();
        self.terminated(length)
    }

    fn terminated(&mut self, length: usize) -> Result<&'a str, Malformed> {
        let bytes = self.take(length)?;
        if self.byte()? != 0 {
            return Err(Malformed("a string does not end with a zero byte"));
        }
        std::str::from_utf8(bytes).map_err(|_| Malformed("a string is not UTF-8"))
    }

    /// A variant that holds a string.
    pub fn text_variant(&mut self) -> Result<&'a str, Malformed> {
        match self.signature()? {
            "s" | "o" => self.text(),
            _ => Err(Malformed("expected a variant with a string")),
        }
    }

    /// Passes over a value of a header field.
    fn skip(&mut self, signature: &str) -> Result<(), Malformed> {
        let size = match signature {
            "y" => 1,
            "n" | "q" => 2,
            "b" | "i" | "u" | "h" => 4,
            "x" | "t" | "d" => 8,
            "s" | "o" => return self.text().map(drop),
            "g" => return self.signature().map(drop),
            _ => return Err(Malformed("a header field has a type that none has")),
        };
        self.align(size)?;
        self.take(size).map(drop)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A message as the other end would write it, to check the reading by: an answer, or a signal `name`.
    pub(crate) fn answer(
        kind: u8,
        reply_to: u32,
        name: Option<&str>,
        signature: &str,
        write: impl FnOnce(&mut Writer),
    ) -> Vec<u8> {
        let mut body = Writer::default();
        write(&mut body);
        let mut out = Writer::default();
        out.bytes.extend([b'l', kind, 1, 1]);
        out.u32(body.bytes.len() as u32);
        out.u32(7);
        let name = (if kind == SIGNAL { 3 } else { 4 }, "s", name.unwrap_or_default());
        let fields: &[_] = match kind {
            SIGNAL => &[name, (8, "g", signature)],
            _ => &[(5, "u", ""), name, (8, "g", signature)],
        };
        out.array(8, fields, |out, (code, kind, text)| {
            out.bytes.push(*code);
            out.signature(kind);
            match *kind {
                "u" => out.u32(reply_to),
                "g" => out.signature(text),
                _ => out.text(text),
            }
        });
        out.align(8);
        out.bytes.extend(body.bytes);
        out.bytes
    }

    const ERROR: u8 = 3;
    const PING: Address<'_> = Address { destination: "a.b", path: "/a", interface: "a.b", member: "M" };

    #[test]
    fn call_is_laid_out_as_the_specification_says() {
        let bytes = call(1, PING, "s", |body| body.text("hi"));
        let expected: &[&[u8]] = &[
            b"l\x01\0\x01",
            &[7, 0, 0, 0],
            &[1, 0, 0, 0],
            &[71, 0, 0, 0],
            b"\x01\x01o\0\x02\0\0\0/a\0\0\0\0\0\0",
            b"\x02\x01s\0\x03\0\0\0a.b\0\0\0\0\0",
            b"\x03\x01s\0\x01\0\0\0M\0\0\0\0\0\0\0",
            b"\x06\x01s\0\x03\0\0\0a.b\0\0\0\0\0",
            b"\x08\x01g\0\x01s\0\0",
            b"\x02\0\0\0hi\0",
        ];
        assert_eq!(bytes, expected.concat());
        assert_eq!(length(bytes.first_chunk().unwrap()), Ok(bytes.len()));
        assert_eq!(Message::parse(&bytes).unwrap().member.as_deref(), Some("M"));
    }

    #[test]
    fn values_stand_where_their_types_have_to() {
        let mut out = Writer::default();
        out.text("n");
        out.properties(&[
            ("A".to_owned(), Value::U64(1)),
            ("B".to_owned(), Value::Pairs(vec![("x".to_owned(), "y".to_owned())])),
            ("C".to_owned(), Value::Bytes(vec![255])),
        ]);
        let expected: &[&[u8]] = &[
            b"\x01\0\0\0n\0\0\0",
            b"\x50\0\0\0\0\0\0\0",
            b"\x01\0\0\0A\0\x01t\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0",
            b"\x01\0\0\0B\0\x05a(ss)\0\0\0\0\x0e\0\0\0\0\0\0\0\x01\0\0\0x\0\0\0\x01\0\0\0y\0\0\0",
            b"\x01\0\0\0C\0\x02ay\0\0\0\x01\0\0\0\xff",
        ];
        let expected = expected.concat();
        // What the array holds, without the eight bytes of text, the length and what aligns the first element.
        assert_eq!(expected.len() - 16, out.bytes[8] as usize);
        let mut with_length = expected;
        with_length[8] = out.bytes[8];
        assert_eq!(out.bytes, with_length);
    }

    #[test]
    fn answers_are_read_and_mistakes_named() {
        let done = answer(METHOD_RETURN, 3, None, "o", |body| body.text("/job/1"));
        let message = Message::parse(&done).unwrap();
        assert_eq!((message.kind, message.reply_to), (METHOD_RETURN, Some(3)));
        assert_eq!(message.values().text(), Ok("/job/1"));
        let refused = answer(ERROR, 4, Some("a.Error"), "s", |body| body.text("no"));
        assert_eq!(Message::parse(&refused).unwrap().error_name.as_deref(), Some("a.Error"));
        let mistake = |bytes: &[u8]| Message::parse(bytes).unwrap_err().to_string();
        assert!(mistake(b"l").contains("ends in its header"));
        assert!(mistake(&done[..done.len() - 1]).contains("not as long as it says"));
        let mut other = done.clone();
        other[0] = b'x';
        assert!(mistake(&other).contains("byte order"));
        let mut long = done;
        long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(mistake(&long).contains("longer than anything"));
    }

    proptest! {
        #[test]
        fn strings_come_back_as_they_were_written(texts in prop::collection::vec("\\PC{0,20}", 0..5), reply: u32) {
            let bytes = answer(SIGNAL, reply, None, "", |body| {
                body.u32(reply);
                texts.iter().for_each(|text| body.text(text));
                texts.iter().for_each(|text| body.variant(&Value::Text(text.clone())));
            });
            let message = Message::parse(&bytes).unwrap();
            let mut values = message.values();
            prop_assert_eq!(values.u32(), Ok(reply));
            for text in &texts {
                prop_assert_eq!(values.text(), Ok(text.as_str()));
            }
            for text in &texts {
                prop_assert_eq!(values.text_variant(), Ok(text.as_str()));
            }
            prop_assert!(values.byte().is_err());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::parse(&bytes);
        }

        /// Most arbitrary bytes are refused at once; these get further.
        #[test]
        fn spoilt_messages_are_read_or_refused(spoilt in prop::collection::vec((0usize..120, any::<u8>()), 1..6)) {
            let mut bytes = answer(SIGNAL, 9, Some("a.b.Error"), "uoss", |body| {
                body.u32(1);
                ["/job/1", "unit.scope", "done"].iter().for_each(|text| body.text(text));
                body.variant(&Value::Text("text".to_owned()));
            });
            for (at, byte) in spoilt {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            if let Ok(message) = Message::parse(&bytes) {
                let mut values = message.values();
                let _ = (values.u32(), values.text(), values.text(), values.text(), values.text_variant());
            }
        }
    }
}
