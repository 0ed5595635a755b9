//! PEM (RFC 7468), as much of it as a licence and its key need: one block with a known label, blanks and line ends as mail
//! programs leave them.

use data_encoding::BASE64;

/// Characters of a line.
const LINE: usize = 64;

/// The bytes of the first block with this label.
///
/// # Errors
/// What is missing.
pub(super) fn read(text: &str, label: &str) -> Result<Vec<u8>, &'static str> {
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let (_, rest) = text.split_once(&begin).ok_or("the line that begins its block is missing")?;
    let (body, _) = rest.split_once(&end).ok_or("the line that ends its block is missing")?;
    let digits: Vec<u8> = body.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    BASE64.decode(&digits).map_err(|_| "its block is damaged; copy it again, whole")
}

/// One block.
pub(super) fn write(label: &str, bytes: &[u8]) -> String {
    let digits = BASE64.encode(bytes);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in digits.as_bytes().chunks(LINE) {
        text.extend(line.iter().map(|b| char::from(*b)));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}
