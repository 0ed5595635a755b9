//! Users as CSV (RFC 4180, UTF-8), for spreadsheets and other systems: one line of names of columns, one line a user.
//!
//! | column | holds |
//! |---|---|
//! | `email` | the address; the only one that must be there |
//! | `name` | the display name; empty: as it is, for somebody new the address |
//! | `groups` | groups the user is to stand in, by name, with `;` between them |
//! | `active` | `true` or `false`: how somebody new is added; those that are there stay as they are |
//!
//! A spreadsheet takes a cell that begins with `=`, `+`, `-` or `@` for a formula, and names come from strangers: such
//! cells are written with a `'` in front, which is taken off again when they are read.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::account::{self, Email, User};
use crate::group::MAX_STANDS_IN;

/// Largest text that is read, bytes.
pub const MAX_TEXT: usize = 32 * 1024 * 1024;
/// Faulty lines that are told; there may be more.
pub const MAX_FAULTS: usize = 20;

/// One user, as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Where it stands in the text, from 1: the names of columns are line 1.
    pub line: u64,
    /// The address.
    pub email: Email,
    /// The display name, where one is given.
    pub display_name: Option<String>,
    /// Names of groups.
    pub groups: Vec<String>,
    /// Whether the user is added active.
    pub active: bool,
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineFault {
    /// Where it stands, from 1.
    pub line: u64,
    /// What is wrong, and what is expected.
    pub why: String,
}

/// Reads a whole text: every line is good, or nothing is to be done.
///
/// # Errors
/// The first `MAX_FAULTS` of what is wrong.
pub fn read(text: &str) -> Result<Vec<Line>, Vec<LineFault>> {
    let fault = |line, why: String| LineFault { line, why };
    if text.len() > MAX_TEXT {
        return Err(vec![fault(1, format!("the text is larger than {MAX_TEXT} bytes: split it"))]);
    }
    // Spreadsheets begin with a mark of byte order.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // The reader counts a line that ends in both one line late.
    let text = text.replace("\r\n", "\n");
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
    let names = reader.headers().map_err(|error| vec![fault(1, error.to_string())])?.clone();
    let columns = Columns::of(&names).map_err(|why| vec![fault(1, why)])?;
    let (mut lines, mut faults, mut seen) = (Vec::new(), Vec::new(), BTreeMap::new());
    for record in reader.records() {
        if faults.len() >= MAX_FAULTS {
            break;
        }
        let read = match &record {
            Ok(record) => {
                let at = record.position().map_or(0, csv::Position::line);
                columns.line(at, record).map_err(|why| fault(at, why))
            }
            Err(error) => Err(fault(error.position().map_or(0, csv::Position::line), told(error))),
        };
        match read {
            Ok(line) => match seen.insert(line.email.clone(), line.line) {
                Some(first) => faults.push(fault(line.line, format!("{} stands in line {first} already", line.email))),
                None => lines.push(line),
            },
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() { Ok(lines) } else { Err(faults) }
}

fn told(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("{len} cells; line 1 names {expected_len} columns")
        }
        _ => error.to_string(),
    }
}

/// Where each column stands.
struct Columns {
    email: usize,
    name: Option<usize>,
    groups: Option<usize>,
    active: Option<usize>,
}

impl Columns {
    fn of(names: &csv::StringRecord) -> Result<Self, String> {
        let mut at = BTreeMap::new();
        for (place, name) in names.iter().enumerate() {
            let name = name.to_ascii_lowercase();
            if !["email", "name", "groups", "active"].contains(&name.as_str()) {
                return Err(format!("unknown column {name:?}: there are email, name, groups, active"));
            }
            if at.insert(name.clone(), place).is_some() {
                return Err(format!("column {name} stands twice"));
            }
        }
        let email = *at.get("email").ok_or("line 1 names the columns; email is missing")?;
        let at = |name: &str| at.get(name).copied();
        Ok(Self { email, name: at("name"), groups: at("groups"), active: at("active") })
    }

    fn line(&self, line: u64, record: &csv::StringRecord) -> Result<Line, String> {
        let cell = |place: usize| unguarded(record.get(place).unwrap_or_default());
        let email: Email = cell(self.email).parse().map_err(|e: account::EmailError| e.to_string())?;
        let name = self.name.map(cell).filter(|name| !name.is_empty());
        let display_name = name.map(|name| account::name("the name", name)).transpose().map_err(|e| e.to_string())?;
        let groups = self.groups.map(cell).unwrap_or_default().split(';').map(str::trim);
        let groups: Vec<_> = groups.filter(|group| !group.is_empty()).map(str::to_owned).collect();
        if groups.len() > MAX_STANDS_IN {
            return Err(format!("more than {MAX_STANDS_IN} groups"));
        }
        let active = match self.active.map(cell).unwrap_or_default() {
            "" => true,
            word if word.eq_ignore_ascii_case("true") => true,
            word if word.eq_ignore_ascii_case("false") => false,
            word => return Err(format!("active is true or false, not {word:?}")),
        };
        Ok(Line { line, email, display_name, groups, active })
    }
}

/// Writes users and the names of the groups that they stand in themselves.
#[must_use]
pub fn write<'a>(users: impl IntoIterator<Item = (&'a User, &'a BTreeSet<String>)>) -> String {
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    let rows = users.into_iter().map(|(user, groups)| {
        let groups = groups.iter().map(String::as_str).collect::<Vec<_>>().join(";");
        [user.email.to_string(), user.display_name.clone(), groups, user.active.to_string()]
    });
    let head = ["email", "name", "groups", "active"].map(str::to_owned);
    for row in std::iter::once(head).chain(rows) {
        // Memory takes everything.
        let _ = writer.write_record(row.map(|cell| guarded(&cell)));
    }
    writer.into_inner().ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default()
}

/// What a spreadsheet would take for a formula.
fn is_formula(cell: &str) -> bool {
    cell.starts_with(['=', '+', '-', '@'])
}

pub(crate) fn guarded(cell: &str) -> String {
    // One that has the mark already gets another, so that it is as it was when it is read.
    let marked = cell.strip_prefix('\'').is_some_and(|rest| is_formula(rest.trim_start_matches('\'')));
    if is_formula(cell) || marked { format!("'{cell}") } else { cell.to_owned() }
}

fn unguarded(cell: &str) -> &str {
    match cell.strip_prefix('\'') {
        Some(rest) if is_formula(rest.trim_start_matches('\'')) => rest,
        _ => cell,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hedgerow_shared::{EntityId, UnixTime};
    use proptest::prelude::*;

    fn user(email: &str, name: &str) -> User {
        User {
            tenant: "S12345678".parse().unwrap(),
            id: EntityId::from_random([1; 16]),
            email: email.parse().unwrap(),
            display_name: name.into(),
            active: true,
            created: UnixTime(0),
            source: account::UserSource::Local,
        }
    }

    #[test]
    fn p18_users_are_read_from_what_spreadsheets_write() {
        let text = "\u{feff}Email,groups,NAME\r\nAnna@Example.com, Sales ; Staff;,\"Smith, \"\"Anna\"\"\"\r\nbob@example.com,,\r\n";
        let lines = read(text).unwrap();
        assert_eq!((lines.len(), lines[0].email.as_str(), lines[0].line), (2, "anna@example.com", 2));
        assert_eq!(
            (lines[0].display_name.as_deref(), &lines[0].groups[..]),
            (Some("Smith, \"Anna\""), &["Sales".into(), "Staff".into()][..])
        );
        assert_eq!((&lines[1].display_name, lines[1].groups.len(), lines[1].active), (&None, 0, true));
        assert!(!read("email,active\nanna@example.com,FALSE\n").unwrap()[0].active);
        assert_eq!(read("email\n").unwrap(), []);
    }

    #[test]
    fn p18_what_is_wrong_is_told_by_line() {
        let why = |text: &str| read(text).unwrap_err().into_iter().map(|f| (f.line, f.why)).collect::<Vec<_>>();
        let faults =
            why("email,name\nanna@example.com,A\nnobody,B\nanna@EXAMPLE.com,C\nx@y.de,a,b\nd@e.fr,\"a\u{7}b\"\n");
        assert_eq!(faults.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [3, 4, 5, 6], "{faults:?}");
        assert!(faults[1].1.contains("line 2 already") && faults[2].1.contains("names 2 columns"), "{faults:?}");
        assert!(why("name\nAnna\n")[0].1.contains("email is missing"));
        assert!(why("email,phone\n")[0].1.contains("unknown column \"phone\""));
        assert!(why("email,email\n")[0].1.contains("twice"));
        assert_eq!(why(&format!("email\n{}", "x\n".repeat(500))).len(), MAX_FAULTS);
        assert!(why("")[0].1.contains("email is missing"));
        assert!(why("email,active\nanna@example.com,no\n")[0].1.contains("true or false"));
    }

    #[test]
    fn p18_no_spreadsheet_takes_a_name_for_a_formula() {
        for name in ["=HYPERLINK(1)", "+1", "-2", "@SUM(A1)", "'=x", "''+x", "'quoted"] {
            let users = [(user("anna@example.com", name), BTreeSet::new())];
            let text = write(users.iter().map(|(user, groups)| (user, groups)));
            let cell = text.lines().nth(1).unwrap().split(',').nth(1).unwrap().to_owned();
            assert!(!is_formula(cell.trim_matches('"')), "{text}");
            assert_eq!(read(&text).unwrap()[0].display_name.as_deref(), Some(name));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn p18_what_is_written_is_read_as_it_was(
            names in proptest::collection::vec("[ -~\u{e4}\u{20ac}]{0,12}[!-~\u{e4}]", 0..20),
            groups in proptest::collection::btree_set("[A-Za-z][A-Za-z ,\"']{0,8}[a-z]", 0..4),
        ) {
            let users: Vec<_> = names.iter().enumerate().map(|(n, name)| (user(&format!("user{n}@example.com"), name.trim()), groups.clone())).collect();
            let lines = read(&write(users.iter().map(|(user, groups)| (user, groups)))).unwrap();
            prop_assert_eq!(lines.len(), users.len());
            for (line, (user, groups)) in lines.iter().zip(&users) {
                prop_assert_eq!((&line.email, line.display_name.as_ref()), (&user.email, Some(&user.display_name)));
                prop_assert_eq!(line.groups.iter().collect::<Vec<_>>(), groups.iter().collect::<Vec<_>>());
            }
        }

        #[test]
        fn p18_no_text_panics(text in "\\PC*") {
            let _ = read(&text);
        }
    }
}
