package SSLSession::Sealing;

# What the module makes of a session when there is a key, by other means than the module's:
# docs/envelope.md, with Perl's CryptX.

use strict;
use warnings;

use SSLSession::Util qw(slurp spew tmpdir);

use Crypt::AuthEnc::GCM qw(gcm_decrypt_verify gcm_encrypt_authenticate);
use Crypt::Mac::HMAC qw(hmac);
use Crypt::PRNG qw(random_bytes);
use Exporter qw(import);
use MIME::Base64 qw(encode_base64url);

our @EXPORT_OK = qw(session_key new_session_key issue_id unknown_status cache_key plain_key seal unseal ticket_head_id ticket_key_id);

# The file of the key that nginx() uses where a test says nothing of keys.
sub session_key {
    my $file = tmpdir() . '/session.key';
    return -e $file ? $file : new_session_key($file);
}

# A file with a new key, which has another key id than all before.
my ($keys, %key_id) = (0);

sub new_session_key {
    my ($file) = @_;
    $file //= tmpdir() . '/session-' . ++$keys . '.key';
    my $key;
    do { $key = random_bytes(32) } while $key_id{ _key_id($key) }++;
    spew($file, $key);
    chmod 0600, $file or die "$file: $!";
    return $file;
}

sub _key { return slurp($_[0] // session_key()) }
sub _key_id { return substr hmac('SHA256', $_[0], 'keyid'), 0, 1 }

# The functions below take the name of a key's file last; without it that of session_key().

# A session ID, or a ticket of TLSv1.3, as nginx issues it.
sub issue_id {
    my ($protocol, $file) = @_;
    my $key   = _key($file);
    my $label = $protocol eq 'TLSv1.3' ? 'tls13' : 'tls12';
    my $body  = _key_id($key) . random_bytes(19);
    return $body . substr hmac('SHA256', $key, "$label$body"), 0, 12;
}

# How the lookup of a session ID ends that nobody has issued: one in 256 that are made up at random has the
# key id of the key.
sub unknown_status {
    my ($id, $file) = @_;
    return length $id == 32 && substr($id, 0, 1) eq _key_id(_key($file)) ? 'FORGED' : 'FOREIGN';
}

# The name of the entry of a session ID.
sub cache_key {
    my ($id, $file) = @_;
    return 'tls:' . encode_base64url(hmac('SHA256', _key($file), "name$id"));
}

# The same with "ssl_session_key off".
sub plain_key { return 'tls:' . encode_base64url($_[0]) }

# What the head of the ticket keys, and the ticket key of a name, have in place of a session ID.
sub ticket_head_id { my ($file) = @_; return hmac('SHA256', _key($file), 'tkhead') }
sub ticket_key_id { my ($name, $file) = @_; return hmac('SHA256', _key($file), "tkentry$name") }

# The entry of a session in DER. (version => 1: the first byte)
sub seal {
    my ($id, $der, $file, %arg) = @_;
    my $key    = _key($file);
    my $nonce  = random_bytes(12);
    my $header = chr($arg{version} // 1) . _key_id($key) . $nonce;
    my ($data, $tag) = gcm_encrypt_authenticate('AES', hmac('SHA256', $key, "seal$id"), $nonce, $header . $id, $der);
    return $header . $data . $tag;
}

# The session in DER that is in an entry; undef if it does not open.
sub unseal {
    my ($id, $entry, $file) = @_;
    return undef if length $entry < 30;
    my ($header, $nonce, $data, $tag) = unpack 'a14 X12 a12 a' . (length($entry) - 30) . ' a16', $entry;
    return gcm_decrypt_verify('AES', hmac('SHA256', _key($file), "seal$id"), $nonce, $header . $id, $data, $tag);
}

1;
