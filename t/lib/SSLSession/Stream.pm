package SSLSession::Stream;

# Handshakes without pause, in a process of their own, while the test does things to the store.

use strict;
use warnings;

use SSLSession::Client;
use SSLSession::Process;
use SSLSession::Util qw(new_dir slurp spew wait_until);

use Exporter qw(import);
use IO::Handle;
use Time::HiRes qw(time);

our @EXPORT_OK = qw(between rate outcomes longest_gap);

# port => of the TLS server, whose "/" answers with the outcome of the lookup,
# stock => [ [tag, protocol, session], ... ]: offered in turn, again and again; each fifth
# handshake offers nothing, and the sixth what that one was given: tags 'full' and 'new'.
# seconds => 60, the most that it runs.
sub new {
    my ($class, %arg) = @_;
    my $dir  = new_dir('stream');
    my $self = bless { file => "$dir/records", end => "$dir/end" }, $class;
    $self->{process} = SSLSession::Process->spawn(
        name => 'stream', out => "$dir/output", code => sub { _run($self, %arg) });
    $self->wait_more(10);
    return $self;
}

sub _run {
    my ($self, %arg) = @_;
    open my $out, '>', $self->{file} or die "$self->{file}: $!\n";
    $out->autoflush(1);
    my $until = time + ($arg{seconds} // 60);
    my @given;
    for (my $n = 0, my $turn = 0; time < $until && !-e $self->{end}; $turn++) {
        my $new  = $turn % 6 == 5 ? shift @given : undef;
        my $full = $turn % 6 == 4;
        my ($tag, $protocol, $session) = $new ? @$new
            : $full ? ('full', $turn % 12 < 6 ? 'TLSv1.2' : 'TLSv1.3')
            : @{ $arg{stock}[ $n++ % @{ $arg{stock} } ] };
        my $at     = time;
        my $client = eval { SSLSession::Client->new(port => $arg{port}, protocol => $protocol, session => $session) };
        my $status = $client && $client->request;
        print {$out} join("\t", $at, $tag, defined $status ? 1 : 0, $status // '',
            $client ? $client->reused : 0, 1000 * (time - $at), $client ? $client->error : $@) =~ tr/\n//dr, "\n";
        @given = ([ 'new', $protocol, $client->session ]) if $full && defined $status;
    }
}

# What has happened so far: { at, tag, ok, status, reused, ms, error } each, in their order.
sub records {
    my ($self) = @_;
    return map {
        my %record;
        @record{qw(at tag ok status reused ms error)} = split /\t/;
        \%record;
    } slurp($self->{file}) =~ /(.*)\n/g;
}

sub count { my ($self) = @_; return slurp($self->{file}) =~ tr/\n// }

# Waits for that many handshakes more.
sub wait_more {
    my ($self, $n) = @_;
    my $goal = $self->count + $n;
    wait_until { $self->count >= $goal } 20, "$n handshakes";
    return $self;
}

# Ends it, and returns all records.
sub stop {
    my ($self) = @_;
    spew($self->{end}, '');
    $self->{process}->wait_exit(20);
    return $self->records;
}

# Functions. Of some records: those of a time (undef: from the first, to the last), ...
sub between {
    my ($from, $to, @records) = @_;
    return grep { (!defined $from || $_->{at} >= $from) && (!defined $to || $_->{at} < $to) } @records;
}

# ... how many of a hundred were resumed, ...
sub rate {
    my @records = grep { $_->{tag} ne 'full' } @_;
    return @records ? 100 * (grep { $_->{reused} } @records) / @records : 0;
}

# ... how often each outcome came, in words, ...
sub outcomes {
    my %count;
    $count{ $_->{status} }++ for grep { $_->{tag} ne 'full' } @_;
    return join ', ', map { "$_ $count{$_}" } sort keys %count;
}

# ... and the longest time from one that was resumed to the next, in milliseconds, if one that was
# not lies between them.
sub longest_gap {
    my ($last, $missed, $longest) = (undef, 0, 0);
    for my $record (@_) {
        if (!$record->{reused}) {
            $missed = 1;
            next;
        }
        my $gap = defined $last && $missed ? 1000 * ($record->{at} - $last) : 0;
        $longest = $gap if $gap > $longest;
        ($last, $missed) = ($record->{at}, 0);
    }
    return $longest;
}

1;
