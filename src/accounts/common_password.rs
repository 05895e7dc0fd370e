//! Passwords that are guessed first: words, rows of keys and runs of digits, alone, repeated or with a usual ending.

/// Words that people choose, with the letters that they replace by digits put back.
const WORDS: [&str; 60] = [
    "password",
    "passwort",
    "pass",
    "login",
    "welcome",
    "admin",
    "administrator",
    "root",
    "user",
    "guest",
    "test",
    "testing",
    "default",
    "changeme",
    "change",
    "letmein",
    "secret",
    "iloveyou",
    "love",
    "lovely",
    "sunshine",
    "princess",
    "dragon",
    "monkey",
    "football",
    "baseball",
    "basketball",
    "soccer",
    "hockey",
    "master",
    "shadow",
    "superman",
    "batman",
    "starwars",
    "pokemon",
    "michael",
    "jennifer",
    "jordan",
    "charlie",
    "daniel",
    "jessica",
    "ashley",
    "thomas",
    "robert",
    "computer",
    "internet",
    "samsung",
    "google",
    "freedom",
    "whatever",
    "trustno",
    "hello",
    "killer",
    "summer",
    "winter",
    "spring",
    "autumn",
    "flower",
    "cookie",
    "posduif",
];

/// Rows of keyboards and of the alphabet, of which any part of at least this many characters is common.
const ROWS: [&str; 9] = [
    "qwertyuiop",
    "qwertzuiop",
    "azertyuiop",
    "asdfghjkl",
    "yxcvbnm",
    "zxcvbnm",
    "abcdefghijklmnopqrstuvwxyz",
    "01234567890",
    "1q2w3e4r5t6y7u8i9o0p",
];

const PART_MIN: usize = 3;

/// Most characters that are not part of a word or row.
const REST_MAX: usize = 4;

/// Whether a password, in lower case, is among the first that are guessed.
pub(crate) fn is_common(password: &str) -> bool {
    let plain: String = password.chars().filter(|c| c.is_alphanumeric()).collect();
    is_periodic(&plain) || is_made_of_rows(&plain) || is_word_with_ending(&plain)
}

/// Whether it is few characters again and again: `aaaaaaaa`, `abcabcabc`.
fn is_periodic(plain: &str) -> bool {
    let chars: Vec<char> = plain.chars().collect();
    (1..=3).any(|period| chars.len() > period && chars.iter().zip(chars.iter().skip(period)).all(|(a, b)| a == b))
}

/// Whether it consists of parts of rows, in either direction: `12345678`, `qwerty123`, `asdf4321`.
fn is_made_of_rows(plain: &str) -> bool {
    let mut rest = plain;
    while !rest.is_empty() {
        let mut ends = rest.char_indices().map(|(start, c)| start + c.len_utf8());
        let fits = |end: &usize| rest.get(..*end).is_some_and(is_part_of_row);
        let Some(end) = ends.rfind(fits) else {
            return false;
        };
        rest = rest.get(end..).unwrap_or_default();
    }
    true
}

fn is_part_of_row(part: &str) -> bool {
    let reversed: String = part.chars().rev().collect();
    part.chars().count() >= PART_MIN && ROWS.iter().any(|row| row.contains(part) || row.contains(&reversed))
}

/// Whether it is one of the words, once or twice, with digits behind it or before it: `password1`, `admin2024`.
fn is_word_with_ending(plain: &str) -> bool {
    let core = plain.trim_matches(|c: char| c.is_ascii_digit());
    let original: String = core
        .chars()
        .map(|c| match c {
            '0' => 'o',
            '1' | '!' => 'i',
            '3' => 'e',
            '4' => 'a',
            '5' => 's',
            '7' => 't',
            other => other,
        })
        .collect();
    if plain.len() - core.len() > REST_MAX && !is_made_of_rows(&plain.replace(core, "")) {
        return false;
    }
    WORDS.iter().any(|word| original == *word || original == word.repeat(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_passwords_are_known_and_others_are_not() {
        for common in [
            "12345678",
            "123456789",
            "87654321",
            "11111111",
            "abcabcabc",
            "password",
            "password1",
            "passw0rd",
            "p4ssw0rd",
            "password123456",
            "qwertyuiop",
            "qwerty123",
            "asdfghjkl",
            "1q2w3e4r",
            "iloveyou",
            "admin2024",
            "welcome1!",
            "testtest",
            "letmein123",
            "abcd1234",
            "changeme",
            "sunshine1",
            "12341234",
        ] {
            assert!(is_common(common), "{common}");
        }
        for other in [
            "correct horse",
            "posduif-demo",
            "another horse",
            "tr0ub4dor&3",
            "kx7-qpl2-mm",
            "passwordless future",
            "ääkkösiä",
        ] {
            assert!(!is_common(other), "{other}");
        }
    }
}
