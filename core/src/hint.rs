//! What an operator can do about what a server says.
//!
//! A hint stands behind the server's words in a line of the log. It is ours: of what the server has
//! said it has the name of a command at most, and that from a list of those that are sent.

use core::fmt;

use crate::said::Said;

/// What to change. The text is what follows a line of the log; `docs/operation.md` has it, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint<'a> {
    /// Redis in protected mode.
    ProtectedMode,
    /// Redis wants a password.
    PasswordNeeded {
        /// What the directives begin with.
        of: &'static str,
    },
    /// Redis has no password.
    PasswordNotNeeded {
        /// What the directives begin with.
        of: &'static str,
    },
    /// The password, or the user, is another one.
    Credentials {
        /// What the directives begin with.
        of: &'static str,
    },
    /// Redis before 6 has no users.
    NoUsers {
        /// What the directives begin with.
        of: &'static str,
    },
    /// The user lacks a right.
    Allow {
        /// The user.
        user: &'a [u8],
        /// The right, as `ACL SETUSER` has it.
        right: &'static str,
    },
    /// The user must not touch the keys.
    AllowKeys {
        /// The user.
        user: &'a [u8],
    },
    /// There is no such database.
    Database,
    /// Redis takes no more connections.
    MaxClients,
    /// The command of `single_use` is missing.
    Take,
    /// The server does not know `CLIENT SETNAME`.
    ClientName,
    /// The server knows no `ROLE`.
    Role,
    /// The server is no Sentinel.
    NotSentinel,
    /// The server is no node of a cluster.
    NotCluster,
    /// The server is a node of a cluster.
    Cluster,
    /// A node of a cluster is reached by an address that leads to others, too.
    OwnAddress,
    /// Another command is missing.
    Command,
    /// The server is a replica.
    Replica,
    /// Redis is full.
    Memory,
    /// Redis cannot save.
    Save,
    /// A master has fewer replicas than it wants to have.
    Replicas,
    /// Another program uses the keys.
    Keys,
    /// memcached before 1.6.10, or something that is no memcached.
    MetaCommands,
    /// memcached wants a password.
    MemcachedPassword,
    /// memcached takes no more connections.
    MemcachedConnections,
    /// memcached takes no entries of this size.
    MemcachedItemSize,
    /// memcached is full.
    MemcachedMemory,
    /// The certificate of the server is of a CA that is not trusted.
    Trust,
    /// The certificate of the server is of another name.
    TlsName,
    /// The server may want a certificate.
    ClientCertificate,
    /// The server may want TLS.
    WantsTls,
    /// The server speaks TLS.
    SpeaksTls,
    /// The server may speak no TLS.
    SpeaksNoTls,
    /// The server may speak no TLS, or be too far away for the time that its handshake has.
    NoTlsInTime,
    /// The server may be too far away for the time that connecting has.
    ConnectTimeout,
    /// The server answers, but too late.
    FetchTimeout,
}

impl fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Hint::ProtectedMode => {
                "give the server a password, \"requirepass\" or ACL SETUSER, and set \
                 \"password_file\""
            }
            Hint::PasswordNeeded { of } => {
                return write!(
                    f,
                    "set \"{of}password_file\", and \"{of}username\" if it is a user's"
                );
            }
            Hint::PasswordNotNeeded { of } => {
                return write!(
                    f,
                    "the server has no password: remove \"{of}password_file\", or set \
                     \"requirepass\" there"
                );
            }
            Hint::Credentials { of } => {
                return write!(
                    f,
                    "check \"{of}username\" and \"{of}password_file\" by ACL GETUSER at the server"
                );
            }
            Hint::NoUsers { of } => {
                return write!(f, "users need Redis 6: remove \"{of}username\"");
            }
            Hint::Allow { user, right } => {
                return write!(f, "at the server: ACL SETUSER {} {right}", Said(user));
            }
            Hint::AllowKeys { user } => {
                return write!(
                    f,
                    "at the server: ACL SETUSER {} ~PREFIX*, PREFIX being \"key_prefix\"",
                    Said(user)
                );
            }
            Hint::Database => "remove \"database\", or raise \"databases\" at the server",
            Hint::MaxClients => "raise \"maxclients\" at the server: CONFIG SET maxclients N",
            Hint::Take => "\"single_use\" needs GETDEL, which Redis has from 6.2 on",
            Hint::ClientName => "remove \"client_name\"",
            Hint::Role => "\"sentinel\" needs ROLE at the master",
            Hint::NotSentinel => "with \"sentinel\" each \"server\" is a Sentinel, port 26379",
            Hint::NotCluster => "the server is no node of a cluster: remove \"cluster\"",
            Hint::Cluster => "the server is a node of a cluster: set \"cluster on\"",
            Hint::OwnAddress => {
                "each node needs an address of its own: \"cluster-announce-ip\" and \
                 \"cluster-announce-port\""
            }
            Hint::Command => {
                "the module needs GET, SET and DEL: is there a proxy, or \"rename-command\"?"
            }
            Hint::Replica => {
                "the server is a replica: name its master, or its Sentinels with \"sentinel\""
            }
            Hint::Memory => {
                "raise \"maxmemory\", or at the server: CONFIG SET maxmemory-policy volatile-lru"
            }
            Hint::Save => {
                "see the server's log; if nothing has to be saved there: CONFIG SET save \"\""
            }
            Hint::Replicas => "bring its replicas back, or lower \"min-replicas-to-write\" there",
            Hint::Keys => "another program uses these keys: set \"key_prefix\"",
            Hint::MetaCommands => {
                "meta commands need memcached 1.6.10, and no proxy that does not know them"
            }
            Hint::MemcachedPassword => "\"protocol memcached\" has no passwords: remove -Y there",
            Hint::MemcachedConnections => "raise -c of memcached",
            Hint::MemcachedItemSize => "raise -I of memcached",
            Hint::MemcachedMemory => "raise -m of memcached",
            Hint::Trust => "name the server's CA in \"ssl_trusted_certificate\"",
            Hint::TlsName => "set \"ssl_name\" to a name that the certificate has",
            Hint::ClientCertificate => {
                "if the server wants a certificate: \"ssl_certificate\" and \"ssl_certificate_key\""
            }
            Hint::WantsTls => "if the server wants TLS: \"ssl on\", or \"rediss://\"",
            Hint::SpeaksTls => "the server speaks TLS: \"ssl on\", or \"rediss://\"",
            Hint::SpeaksNoTls => "if the server speaks no TLS: \"ssl off\", or \"redis://\"",
            Hint::NoTlsInTime => {
                "if the server speaks no TLS: \"ssl off\", or \"redis://\"; if it is far away: \
                 raise \"connect_timeout\""
            }
            Hint::ConnectTimeout => "if the server is far away: raise \"connect_timeout\"",
            Hint::FetchTimeout => "if the server is far away: raise \"fetch_timeout\"",
        })
    }
}

/// A hint as it stands in a line, or nothing.
#[derive(Clone, Copy, Debug)]
pub struct Hinted<'a>(pub Option<Hint<'a>>);

impl fmt::Display for Hinted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(hint) => write!(f, " (hint: {hint})"),
            None => Ok(()),
        }
    }
}

/// Whether a text has these words in it, in letters of either case.
pub(crate) fn has(text: &[u8], words: &str) -> bool {
    text.windows(words.len()).any(|part| part.eq_ignore_ascii_case(words.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn a_hint_stands_in_brackets_behind_the_servers_words() {
        assert_eq!(Hinted(Some(Hint::ClientName)).to_string(), " (hint: remove \"client_name\")");
        assert_eq!(Hinted(None).to_string(), "");
    }

    #[test]
    fn what_is_to_be_typed_has_the_user() {
        let allow = Hint::Allow { user: b"nginx", right: "+getdel" };
        assert_eq!(allow.to_string(), "at the server: ACL SETUSER nginx +getdel");
        let of = "sentinel_";
        assert_eq!(
            Hint::NoUsers { of }.to_string(),
            "users need Redis 6: remove \"sentinel_username\""
        );
        let odd = Hint::AllowKeys { user: b"a\nb" };
        assert!(odd.to_string().contains("SETUSER a\\x0ab ~PREFIX*"), "{odd}");
    }

    #[test]
    fn words_are_found_in_either_case() {
        assert!(has(b"ERR Unknown Command 'get'", "unknown command"));
        assert!(!has(b"ERR unknown", "unknown command"));
        assert!(!has(b"", "a"));
    }
}
