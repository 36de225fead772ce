//! Names of users and groups to numbers, by the container's own `/etc/passwd` and `/etc/group`. Pure.
//!
//! Source: Docker's `--user`: `user[:group]`, names or numbers; moby/sys/user, `GetExecUser`.

/// The most that is read of either file: those of large sites have a few hundred kilobytes.
pub const FILE_BYTES_MAX: u64 = 4 << 20;
/// As with Docker. The kernel has twice as many, but for the last, which it reads as "stay who you are": root.
const ID_MAX: i64 = i32::MAX as i64;

/// Who a container's process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UserError {
    #[error("unable to find user `{name}`: no matching entry in the image's `/etc/passwd`")]
    NoUser { name: String },
    #[error("unable to find group `{name}`: no matching entry in the image's `/etc/group`")]
    NoGroup { name: String },
    #[error("user or group `{word}` has the number {id}: expected 0 to {ID_MAX}")]
    Range { word: String, id: i64 },
}

struct Passwd<'a> {
    name: &'a str,
    uid: i64,
    gid: i64,
}

struct Group<'a> {
    name: &'a str,
    gid: i64,
    members: &'a str,
}

/// Finds the user meant by `words` (empty means root) with the supplementary groups `groups`.
///
/// A number needs no entry. Without a group in `words`, the user's own group and those that list it as a member count;
/// with one, only that one does.
///
/// # Errors
/// `NoUser`, `NoGroup` for a name without an entry, `Range` for a number that nobody can have.
pub fn resolve(words: &str, groups: &[String], passwd: &str, group: &str) -> Result<User, UserError> {
    let (user_word, group_word) = match words.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (words, None),
    };
    let user_word = if user_word.is_empty() { "0" } else { user_word };
    let number = user_word.parse::<i64>().ok();
    // A name that is all digits is possible, and names come first.
    let entry = passwd_entries(passwd)
        .find(|entry| entry.name == user_word)
        .or_else(|| passwd_entries(passwd).find(|entry| Some(entry.uid) == number));
    let mut user = match (&entry, number) {
        (Some(entry), _) => {
            let (uid, gid) = (id(user_word, entry.uid)?, id(user_word, entry.gid)?);
            User { uid, gid, additional_gids: Vec::new() }
        }
        (None, Some(uid)) => User { uid: id(user_word, uid)?, gid: 0, additional_gids: Vec::new() },
        (None, None) => return Err(UserError::NoUser { name: user_word.to_owned() }),
    };
    match (group_word, &entry) {
        (Some(word), _) => user.gid = group_id(word, group)?,
        (None, Some(entry)) => {
            let member =
                |group: &Group<'_>| group.members.split(',').any(|member| member.trim() == entry.name);
            let of_user = group_entries(group).filter(member).map(|group| id(group.name, group.gid));
            user.additional_gids = of_user.collect::<Result<_, _>>()?;
        }
        (None, None) => {}
    }
    for word in groups {
        user.additional_gids.push(group_id(word, group)?);
    }
    user.additional_gids.sort_unstable();
    user.additional_gids.dedup();
    Ok(user)
}

fn group_id(word: &str, group: &str) -> Result<u32, UserError> {
    let entry = group_entries(group).find(|entry| entry.name == word).map(|entry| entry.gid);
    let found = entry.or_else(|| word.parse().ok());
    id(word, found.ok_or_else(|| UserError::NoGroup { name: word.to_owned() })?)
}

/// The number behind a word, if one can be it.
fn id(word: &str, id: i64) -> Result<u32, UserError> {
    let known = u32::try_from(id).ok().filter(|_| id <= ID_MAX);
    known.ok_or_else(|| UserError::Range { word: word.to_owned(), id })
}

/// Lines that are no entries are passed over, as the C library does.
fn passwd_entries(text: &str) -> impl Iterator<Item = Passwd<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (!name.is_empty()).then_some(Passwd { name, uid, gid })
    })
}

fn group_entries(text: &str) -> impl Iterator<Item = Group<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let gid = fields.next()?.parse().ok()?;
        (!name.is_empty()).then_some(Group { name, gid, members: fields.next().unwrap_or_default() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\n# no entry\nweb:x:33:34:Web:/srv:/bin/false\n7:x:70:71::\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\naudio:x:29:web,other\nlog:x:4:web\nbad\n";

    fn check(words: &str, groups: &[&str], expected: Result<(u32, u32, &[u32]), &str>) {
        let groups: Vec<String> = groups.iter().map(|&group| group.to_owned()).collect();
        let found = resolve(words, &groups, PASSWD, GROUP);
        let shown = found.as_ref().map(|u| (u.uid, u.gid, u.additional_gids.as_slice()));
        match (shown, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{words}"),
            (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{words}: {error}"),
            (found, expected) => panic!("{words}: expected {expected:?}, found {found:?}"),
        }
    }

    #[test]
    fn names_and_numbers_are_resolved() {
        check("", &[], Ok((0, 0, &[])));
        check("root", &[], Ok((0, 0, &[])));
        check("web", &[], Ok((33, 34, &[4, 29])));
        check("33", &[], Ok((33, 34, &[4, 29])));
        check("web:log", &[], Ok((33, 4, &[])));
        check("web:1234", &["audio", "9"], Ok((33, 1234, &[9, 29])));
        check("1000", &[], Ok((1000, 0, &[])));
        check("1000:1000", &[], Ok((1000, 1000, &[])));
        check(":www", &[], Ok((0, 34, &[])));
        check("7", &[], Ok((70, 71, &[])));
        check("nobody", &[], Err("unable to find user `nobody`"));
        check("web:nogroup", &[], Err("unable to find group `nogroup`"));
        check("web", &["nogroup"], Err("unable to find group `nogroup`"));
        check("2147483647:2147483647", &[], Ok((2_147_483_647, 2_147_483_647, &[])));
    }

    #[test]
    fn numbers_that_nobody_can_have_are_refused() {
        for (words, groups, number) in [
            ("4294967295", &[][..], "4294967295"),
            ("2147483648", &[], "2147483648"),
            ("4294967296", &[], "4294967296"),
            ("-1", &[], "-1"),
            ("0:4294967295", &[], "4294967295"),
            ("web:-1", &[], "-1"),
            ("web", &["4294967295"], "4294967295"),
        ] {
            let rule = format!("has the number {number}: expected 0 to 2147483647");
            check(words, groups, Err(&rule));
        }
        // Nor do names stand for one.
        let root = |passwd: &str, group: &str| resolve("x", &[], passwd, group).unwrap_err().to_string();
        assert!(root("x:x:4294967295:0::\n", "").contains("`x` has the number 4294967295"));
        assert!(root("x:x:1:4294967295::\n", "").contains("`x` has the number 4294967295"));
        assert!(root("x:x:1:1::\n", "y:x:4294967295:x\n").contains("`y` has the number 4294967295"));
    }

    #[test]
    fn an_image_without_files_has_root() {
        let root = User { uid: 0, gid: 0, additional_gids: vec![] };
        assert_eq!(resolve("", &[], "", ""), Ok(root));
    }
}
