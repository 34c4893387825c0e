package SSLSession::Relay::Frames;

# Where a request or a reply of RESP or memcached ends. Each function takes the next whole one
# off the bytes it is given a reference to, and returns undef when there is none yet. Of TLS a
# record is a reply.

use strict;
use warnings;

use Exporter qw(import);

our @EXPORT_OK = qw(next_request next_reply);

# [name, argument, ..., value]. What is of another protocol is one request as it came.
sub next_request {
    my ($bytes) = @_;
    return undef if !length $$bytes;
    return _resp_request($bytes) if $$bytes =~ /^\*/;
    # The first line of memcached, or a part of it; RESP's inline commands are upper-case here.
    if ($$bytes =~ /^([a-z]+(?: [^\r\n]*)?)\r\n/) {
        my @words = split / +/, $1;
        my $end   = length($1) + 2;
        my $size  = $words[0] eq 'ms' ? $words[2]
            : $words[0] =~ /^(?:set|add|replace|append|prepend|cas)$/ ? $words[4] : undef;
        if (defined $size && $size =~ /^\d+$/) {
            return undef if length $$bytes < $end + $size + 2;
            push @words, substr $$bytes, $end, $size;
            $end += $size + 2;
        }
        substr $$bytes, 0, $end, '';
        return \@words;
    }
    return undef if $$bytes =~ /^[a-z]+(?: [^\r\n]*)?\r?\z/;
    my $request = [$$bytes];
    $$bytes = '';
    return $request;
}

sub _resp_request {
    my ($bytes) = @_;
    my ($rest, @words) = $$bytes;
    $rest =~ s/^\*(\d+)\r\n// or return undef;
    for (1 .. $1) {
        $rest =~ s/^\$(\d+)\r\n// or return undef;
        my $size = $1;
        return undef if length $rest < $size + 2;
        push @words, substr $rest, 0, $size;
        substr $rest, 0, $size + 2, '';
    }
    $$bytes = $rest;
    return \@words;
}

sub next_reply {
    my ($bytes) = @_;
    my $end = $$bytes =~ /^[A-Za-z0-9]/ ? _memcached_end($$bytes)
        : $$bytes =~ /^[\x14-\x17](?:\x03|\z)/ ? _tls_end($$bytes) : _resp_end($$bytes, 0);
    return defined $end ? substr $$bytes, 0, $end, '' : undef;
}

# Where the reply that begins at $at ends.
sub _resp_end {
    my ($bytes, $at) = @_;
    pos($bytes) = $at;
    $bytes =~ /\G(.)([^\r\n]*)\r\n/gcs or return undef;
    my ($type, $number, $end) = ($1, $2, pos $bytes);
    if ($type =~ /[\$!=]/ && $number >= 0) {
        $end += $number + 2;
        return $end <= length $bytes ? $end : undef;
    }
    if ($type =~ /[*~>%]/) {
        for (1 .. $number * ($type eq '%' ? 2 : 1)) {
            $end = _resp_end($bytes, $end) // return undef;
        }
    }
    return $end;
}

sub _tls_end {
    my ($bytes) = @_;
    return undef if length $bytes < 5;
    my $end = 5 + unpack 'x3n', $bytes;
    return $end <= length $bytes ? $end : undef;
}

sub _memcached_end {
    my ($bytes) = @_;
    my $at = 0;
    while (1) {
        pos($bytes) = $at;
        $bytes =~ /\G([^\n]*)\n/gc or return undef;
        my $line = $1;
        $at = pos $bytes;
        return $at if $line !~ /^(?:VA |VALUE |STAT )/;
        $at += $1 + 2 if $line =~ /^VA (\d+)/ || $line =~ /^VALUE \S+ \d+ (\d+)/;
        return undef if $at > length $bytes;
        return $at if $line =~ /^VA /;
    }
}

1;
