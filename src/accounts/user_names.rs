//! Usernames and emails.

use crate::accounts::users::NewUser;
use crate::feature::{Error, check_line, check_text};

/// Checks the names of a user to create.
pub fn check(new: &NewUser) -> Result<(), Error> {
    check_name("username", &new.username)?;
    let email = new.email.as_deref();
    if let Some(email) = email {
        check_email(email)?;
    }
    // Otherwise the username could shadow the login by email of another user.
    let is_same = email.is_some_and(|email| email.to_lowercase() == new.username.to_lowercase());
    if new.username.contains('@') && !is_same {
        return Err(Error::invalid("username", "must not contain @, unless it is the email"));
    }
    Ok(())
}

/// Checks the form of an email: that of HTML forms (WHATWG HTML, section 4.10.5.1.5), and non-ASCII letters (RFC 6531).
pub(crate) fn check_email(email: &str) -> Result<(), Error> {
    const LOCAL: &str = ".!#$%&'*+/=?^_`{|}~-";
    check_text("email", email, 254)?;
    let is_letter = |c: char| c.is_ascii_alphanumeric() || (!c.is_ascii() && c.is_alphanumeric());
    let is_local =
        |local: &str| (1..=64).contains(&local.len()) && local.chars().all(|c| is_letter(c) || LOCAL.contains(c));
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.chars().all(|c| is_letter(c) || c == '-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    match email.split_once('@') {
        Some((local, domain)) if is_local(local) && domain.split('.').all(is_label) => Ok(()),
        _ => Err(Error::invalid(
            "email",
            "must be an email address, such as bob@example.com",
        )),
    }
}

/// Checks a username or email.
pub(crate) fn check_name(field: &'static str, name: &str) -> Result<(), Error> {
    check_line(field, name, 255)?;
    if name.trim() != name {
        return Err(Error::invalid(field, "must not begin or end with a space"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounts::users::{Role, UserType};

    #[test]
    fn email_is_checked_like_in_html_forms() {
        for good in [
            "bob@example.com",
            "Bob.Smith+tag@mail.example.co.uk",
            "o'hara@example.com",
            "b@localhost",
            "jürgen@bücher.example",
        ] {
            assert!(check_email(good).is_ok(), "{good}");
        }
        let long = format!("{}@example.com", "x".repeat(65));
        for bad in [
            "",
            "bob",
            "@",
            "bob@",
            "@example.com",
            "a@b@c",
            "a b@example.com",
            "bob@exam ple.com",
            " bob@example.com",
            "bob@-example.com",
            "bob@example-.com",
            "bob@example..com",
            "bob@.com",
            "bob@example.com.",
            "a@b\0",
            "bob@example.com\n",
            "<bob@example.com>",
            &long,
        ] {
            assert!(check_email(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn username_with_at_sign_must_be_the_email() {
        let user = |username: &str, email: Option<&str>| NewUser {
            username: username.into(),
            user_type: UserType::Web,
            role: Role::Member,
            email: email.map(str::to_owned),
            is_email_unverified: false,
            password: None,
        };
        assert!(check(&user("bob", Some("bob@example.com"))).is_ok());
        assert!(check(&user("Bob@example.com", Some("bob@Example.com"))).is_ok());
        assert!(check(&user("bob@example.com", None)).is_err());
        assert!(check(&user("bob@example.com", Some("eve@example.com"))).is_err());
    }
}
