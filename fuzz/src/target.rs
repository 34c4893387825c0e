//! Targets, as written in a configuration: what is read is what was written, and no password is
//! shown.

use session_core::target::{Encoded, Redacted, Server, Target};

/// A text.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let shown = Redacted(text).to_string();
    assert_eq!(format!("{:?}", Redacted(text)), shown);
    redacted(text, &shown);
    match Target::parse(text) {
        Ok(Target::Off) => assert_eq!(text, "off"),
        Ok(Target::Shared(zone)) => {
            assert_eq!(format!("shared:{}:{}", zone.name, zone.size), text);
            assert!(!zone.name.contains(':'));
        }
        Ok(Target::Server(server)) => server_of(text, &server, &shown),
        Ok(Target::Backend(name)) => assert!(name == text && !name.is_empty()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    any_password(data);
}

/// Whatever comes before the last `@`, but for the scheme and the path of a socket, is hidden.
fn redacted(text: &str, shown: &str) {
    if !text.contains('@') {
        assert_eq!(shown, text);
    }
    if !text.contains("unix:/") && text.contains('@') {
        let (before, after) = shown.split_once("***@").unwrap();
        assert!(text.ends_with(after) && !after.contains('@'));
        let scheme = before.strip_suffix("://").unwrap_or(before);
        assert!(scheme.bytes().all(|c| c.is_ascii_alphanumeric()), "{shown}");
    }
}

fn server_of(text: &str, server: &Server<'_>, shown: &str) {
    assert!(!server.address.is_empty());
    assert!(server.user.is_none() || server.password.is_some());
    let (scheme, rest) = text.split_once("://").unwrap();
    if server.password.is_some() {
        // With another password it looks the same.
        let Ok(Target::Server(other)) = Target::parse("redis://:other@host") else { panic!() };
        let other = Server { password: other.password, ..*server };
        assert_eq!(other.to_string(), server.to_string());
        assert_eq!(format!("{other:?}"), format!("{server:?}"));
        // And as it is written nothing is shown of what stands before the last "@" of the host.
        let host = rest.split('/').next().unwrap();
        let place = &rest[host.rfind('@').unwrap() + 1..];
        assert!(place.starts_with(server.address));
        let after = shown.strip_prefix(&format!("{scheme}://***@")).unwrap();
        assert!(place.ends_with(after), "{shown}");
    }

    // Without a password the name is a target, and the same one.
    if server.password.is_none() {
        assert_eq!(Target::parse(&server.to_string()), Ok(Target::Server(*server)));
    }
}

/// Any password can be written down, is read again, and is not shown.
fn any_password(password: &[u8]) {
    let encoded: String = password.iter().map(|byte| format!("%{byte:02x}")).collect();
    let text = format!("redis://u%40:{encoded}@host/1");
    let Ok(Target::Server(server)) = Target::parse(&text) else { panic!("{text}") };
    let decode = |text: Option<Encoded<'_>>| text.unwrap().decode().unwrap();
    assert_eq!(decode(server.user), b"u@");
    assert_eq!(decode(server.password), password);
    assert_eq!(server.to_string(), "redis://u%40@host/1");
    assert_eq!(Redacted(&text).to_string(), "redis://***@host/1");
}
