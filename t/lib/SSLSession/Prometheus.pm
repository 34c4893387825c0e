package SSLSession::Prometheus;

# A real Prometheus on a port of the test's own, with its data in a directory that goes with the test.

use strict;
use warnings;

use parent 'SSLSession::Server';
use SSLSession::Util qw(free_port new_dir spew);

use Carp qw(croak);
use HTTP::Tiny;
use JSON::PP qw(decode_json);

# Whether it is installed, and promtool with it.
sub installed {
    my %found = map { $_ => 1 } grep { my $program = $_; grep { -x "$_/$program" } split /:/, $ENV{PATH} } qw(prometheus promtool);
    return 2 == keys %found;
}

# config => the text of prometheus.yml
# files => { 'rules.yml' => text }: what stands beside it
# start => 0 leaves it stopped
sub new {
    my ($class, %arg) = @_;
    my $dir  = new_dir('prometheus');
    my $self = bless { port => $arg{port} // free_port(), dir => $dir, log => "$dir/log" }, $class;
    $self->{http} = HTTP::Tiny->new(timeout => 10, proxy => undef, http_proxy => undef);
    spew("$dir/prometheus.yml", $arg{config});
    spew("$dir/$_", $arg{files}{$_}) for keys %{ $arg{files} // {} };
    $self->start unless defined $arg{start} && !$arg{start};
    return $self;
}

sub dir { $_[0]{dir} }
sub url { "http://127.0.0.1:$_[0]{port}" }

# Starts it, or starts it again with what it has collected.
sub start {
    my ($self) = @_;
    return $self->_run([
        'prometheus', "--config.file=$self->{dir}/prometheus.yml", "--storage.tsdb.path=$self->{dir}/data",
        "--web.listen-address=127.0.0.1:$self->{port}", '--log.level=warn',
    ], sub { $self->{http}->get($self->url . '/-/ready')->{success} });
}

# api('rules'), api('series', 'match[]' => 'up'): what it answers as "data". Dies with its words.
sub api {
    my ($self, $what, @parameters) = @_;
    my $query  = $self->{http}->www_form_urlencode(\@parameters);
    my $answer = $self->{http}->get($self->url . "/api/v1/$what?$query");
    my $json   = eval { decode_json($answer->{content}) } or croak "prometheus: $answer->{status} $answer->{content}";
    $json->{status} eq 'success' or croak "prometheus: $json->{error}";
    return $json->{data};
}

# The samples that an expression has now: { metric => { label => value }, value => [time, value] }.
sub query {
    my ($self, $expression) = @_;
    my $data = $self->api('query', query => $expression);
    $data->{resultType} eq 'vector' or croak "prometheus: $expression is a $data->{resultType}";
    return @{ $data->{result} };
}

1;
