# docs/monitoring*: what a real Prometheus, set up as it says there, makes of the dashboard and the rules.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use JSON::PP qw(decode_json);
use List::Util qw(sum);
use Test::More;

plan skip_all => 'no prometheus and promtool' if !SSLSession::Prometheus::installed();

my $docs      = root() . '/docs/monitoring';
my $guide     = slurp("$docs.md");
my $dashboard = decode_json(slurp("$docs/dashboard.json"));
my @panels    = grep { $_->{type} ne 'row' } @{ $dashboard->{panels} };
my ($example) = $guide =~ /^```nginx\n(.*?)^```$/ms;
my ($scraping, $relabeling) = $guide =~ /^```yaml\n(.*?)^```$/msg;

# Two nginx servers before one Redis, each with a zone in front. What is slow here is not of interest.
my $certs = certs();
my $redis = redis();
my @nginx = map { site() } 1 .. 2;
traffic();

my %job = map { $_ => $scraping } qw(whole thinned);
$job{thinned} =~ s/^.*^scrape_configs:\n//ms;
s/'127\.0\.0\.1:8080'.*\]/join(', ', map { "'127.0.0.1:$_->{shown}'" } @nginx) . ']'/e for values %job;
$job{thinned} =~ s/job_name: .*/job_name: thinned/;
my $prometheus = prometheus(
    config => "global:\n  scrape_interval: 500ms\n  evaluation_interval: 500ms\n$job{whole}\n$job{thinned}$relabeling",
    files  => { 'rules.yml' => slurp("$docs/rules.yml") },
);
my $now = sub { my ($expression) = @_; traffic(); $prometheus->query($expression) };

# What is exported, as it is on the wire: families, their labels, and the values of these.
my %type  = page($nginx[0]) =~ /^# TYPE (\S+) (\S+)$/mg;
my %label = (job => 1, instance => 1);
$label{$_} = 1 for map { /(\w+)="/g } page($nginx[0]) =~ /^\w+\{(.*)\} \S+$/mg;

subtest 'promtool is content' => sub {
    for my $what ('check rules rules.yml', 'test rules rules-test.yml') {
        my $said = `cd '$docs' && promtool $what 2>&1`;
        is $?, 0, $what or diag $said;
    }
};

subtest 'the dashboard can be imported' => sub {
    my ($source) = @{ $dashboard->{__inputs} };
    is "$source->{name} $source->{type} $source->{pluginId}", 'DS_PROMETHEUS datasource prometheus', 'it asks for a Prometheus';
    cmp_ok $dashboard->{schemaVersion}, '>=', 37, 'of Grafana 10';
    my %id = map { $_->{id} => 1 } @{ $dashboard->{panels} };
    is scalar keys %id, scalar @{ $dashboard->{panels} }, 'each panel has an ID of its own';
    my %place;
    for my $panel (@{ $dashboard->{panels} }) {
        my $at = $panel->{gridPos};
        for my $x ($at->{x} .. $at->{x} + $at->{w} - 1) {
            fail("$panel->{title} lies on another one or outside") for grep { $place{"$x $_"}++ || $x > 23 } $at->{y} .. $at->{y} + $at->{h} - 1;
        }
    }
    for my $panel (@panels) {
        is_deeply $panel->{datasource}, { type => 'prometheus', uid => '${DS_PROMETHEUS}' }, "$panel->{title}: the source";
        ok length $panel->{description}, 'is described';
        ok $panel->{fieldConfig}{defaults}{unit} // $panel->{options}{yAxis}{unit}, 'has a unit';
    }
};

subtest 'what can be chosen' => sub {
    for my $variable (@{ $dashboard->{templating}{list} }) {
        my ($series, $label) = $variable->{query}{query} =~ /^label_values\((.*), (\w+)\)$/ or fail($variable->{name}), next;
        ok wait_until {
            traffic();
            grep { length } @{ $prometheus->api("label/$label/values", 'match[]' => substituted($series)) };
        } 10, "$variable->{name} has values";
    }
};

my (%used, %known);
subtest 'each panel shows something' => sub {
    for my $panel (@panels) {
        for my $target (@{ $panel->{targets} }) {
            my $what = "$panel->{title}: $target->{legendFormat}";
            my $expression = substituted($target->{expr});
            # Counters are there before they count: no panel has a reason to be empty.
            my @found = wait_until { my @samples = $now->($expression); scalar @samples && \@samples } 10, $expression;
            ok scalar @{ $found[0] }, $what;
            my @numbers = grep { $_->{value}[1] =~ /^-?[\d.]+(?:e[-+]\d+)?$/ } @{ $found[0] };
            is scalar @numbers, scalar @{ $found[0] }, 'numbers';
            for my $label ($target->{legendFormat} =~ /\{\{(\w+)\}\}/g) {
                is_deeply [ grep { !length($_->{metric}{$label} // '') } @{ $found[0] } ], [], "all have a $label";
            }
            names_are_there($what, $expression);
            $used{$_} = 1 for metrics_in($expression);
        }
    }
};

subtest 'each metric is shown' => sub {
    cmp_ok keys %type, '>', 20, 'there are some';
    for my $name (sort keys %type) {
        my @names = $type{$name} eq 'histogram' ? map { "${name}_$_" } qw(bucket sum count) : $name;
        ok scalar(grep { $used{$_} } @names), $name;
    }
};

my $rules = wait_until {
    my @all = map { @{ $_->{rules} } } @{ $prometheus->api('rules')->{groups} };
    !grep({ $_->{health} eq 'unknown' } @all) && \@all;
} 10, 'rules to be evaluated';
my @alerts = grep { $_->{type} eq 'alerting' } @$rules;

subtest 'each rule is right' => sub {
    cmp_ok scalar @alerts, '>=', 10, 'there are alerts';
    # What is recorded exists once there is enough traffic, and alerts are about it.
    for my $rule (grep { $_->{type} eq 'recording' } @$rules) {
        is $rule->{health}, 'ok', $rule->{name};
        ok wait_until { scalar(my @samples = $now->($rule->{name})) } 20, 'has values';
        names_are_there($rule->{name}, $rule->{query});
    }
    for my $rule (@alerts) {
        is $rule->{health}, 'ok', $rule->{name};
        ok eval { $prometheus->query($rule->{query}); 1 }, 'can be asked for' or diag $@;
        names_are_there($rule->{name}, $rule->{query});
        my $text = join ' ', @{ $rule->{annotations} }{qw(summary description)};
        like $text, qr{docs/\w+\.md.*docs/troubleshooting\.md}s, 'says where to read on';
        my %has = map { $_ => 1 } map { split /, / } $rule->{query} =~ /\bby \(([^)]+)\)/g;
        %has = map { $_ => 1 } map { labels_of($_) } metrics_in($rule->{query}) if !%has;
        is_deeply [ grep { !$has{$_} } $text =~ /\$labels\.(\w+)/g ], [], 'says nothing that is not there';
    }
};

subtest 'the guide lists them' => sub {
    my %listed = map { /^\| `(\w+)` \| (\w+), (\d+) min \|/ ? ($1 => "$2 $3") : () } split /\n/, $guide;
    is_deeply \%listed, { map { ($_->{name} => "$_->{labels}{severity} " . $_->{duration} / 60) } @alerts }, 'with their severity and time';
};

subtest 'the guide counts the series' => sub {
    my ($protocols, $listen, $tier, $server, @known) = $guide =~ s/\s+/ /gr
        =~ /has (\d+) series for the protocols, (\d+) for each listening address, (\d+) for each tier, (\d+) for each server, (\d+) for each zone, (\d+) for each key, (\d+) for an epoch and (\d+) for the versions\..* are (\d+) series and (\d+) KB.* leave (\d+):/;
    my ($thinned, $kb, $all) = map { pop @known } 1 .. 3;
    is $protocols + $listen + 2 * $tier + $server + sum(@known), $all, 'which are so many in all';
    cmp_ok abs($kb - length(page($nginx[0])) / 1000), '<', 2, 'and so many bytes';
    for my $case ([ 'nginx-ssl-session', $all ], [ thinned => $thinned ]) {
        my ($job, $number) = @$case;
        my @found = wait_until { my @samples = $now->(qq(scrape_samples_post_metric_relabeling{job="$job"} == $number)); @samples == 2 }
            10, "$number series";
        ok scalar @found, "$job: $number";
    }
    my @about = qw(protocols listen tier server zone key epoch build);
    my %count = map { $_ => 0 } @about;
    for (page($nginx[0]) =~ /^nginx_ssl_session_(\w+\{.*)\} /mg) {
        $count{ /^(zone|key|epoch|build)_/ ? $1 : /\bserver="/ ? 'server' : /\{tier="shared/ ? 'tier' : /\{tier=/ ? 'other' : /\{listen=/ ? 'listen' : 'protocols' }++;
    }
    is_deeply [ @count{@about} ], [ $protocols, $listen, $tier, $server, @known ], 'by what they are about';
};

subtest 'what the guide asks is answered' => sub {
    my @questions = map { s/\n  +/ /gr } $guide =~ /^```promql\n(.*?)^```$/msg;
    for my $question (map { split /\n/ } @questions) {
        names_are_there($question, $question);
        next if $question =~ /down_workers > 0/;
        ok wait_until { scalar(my @samples = $now->($question)) } 10, $question;
    }
};

subtest 'a server that is stopped' => sub {
    my ($rule) = grep { $_->{name} eq 'NginxSSLSessionServerDown' } @alerts;
    # Slow is what the machine may be that this runs on.
    is_deeply [ map { $_->{labels}{alertname} } grep { $_->{labels}{alertname} !~ /Slow/ } @{ $prometheus->api('alerts')->{alerts} } ], [],
        'no alert before';
    is_deeply [ $prometheus->query($rule->{query}) ], [], 'nor the beginning of one';
    $redis->stop;
    ok wait_until { @nginx == (my @samples = grep { $_->{metric}{job} ne 'thinned' } $now->($rule->{query})) } 20, 'is down for both';
    my $alert = wait_until {
        my ($one) = grep { $_->{labels}{alertname} eq $rule->{name} && $_->{labels}{job} ne 'thinned' } @{ $prometheus->api('alerts')->{alerts} };
        $one;
    } 10, 'the alert';
    is $alert->{state}, 'pending', 'which does not fire at once';
    is $alert->{annotations}{summary}, 'redis 127.0.0.1:' . $redis->port . " is down for $alert->{labels}{instance}", 'and says so';
    $redis->start;
    ok wait_until { !(my @samples = $now->($rule->{query})) } 20, 'it is back, and that is over';
};

done_testing;

# An nginx with what the guide says of a location, and who answers in it.
sub site {
    my ($port, $shown) = (free_port(), free_port());
    my $location = $example =~ s/127\.0\.0\.1:8080/127.0.0.1:$shown/r;
    my $nginx = nginx(workers => 2, log => 'notice', conf => <<"CONF");
    ssl_session_backend fleet { server 127.0.0.1:${\ $redis->port}; connect_timeout 5s; fetch_timeout 5s; }
    ssl_session_fetch   shared:tls:1m fleet;
    ssl_session_store   shared:tls:1m fleet;
    ssl_session_epoch   epoch;
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    server { listen 127.0.0.1:$port ssl; location / { return 204; } }
    $location
CONF
    return { nginx => $nginx, port => $port, shown => $shown };
}

# Clients of both protocols that come to one nginx, and then to the other, and again.
sub traffic {
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        my $session;
        for my $to (@nginx, $nginx[0]) {
            my $client = tls_client(port => $to->{port}, protocol => $protocol, session => $session);
            defined $client->request('/') or die 'no answer: ' . $client->error;
            $session = ($client->sessions)[0] // $session;
        }
    }
}

sub page { return `curl -fsS http://127.0.0.1:$_[0]{shown}/ssl-sessions` }

# An expression of the dashboard, with what Grafana puts in.
sub substituted {
    my ($expression) = @_;
    my %value = (job => 'nginx-ssl-session', instance => '.+', backend => '.+', __rate_interval => '5s');
    return $expression =~ s/\$(\w+)/$value{$1} \/\/ die "\$$1 in $expression"/ger;
}

sub metrics_in { return $_[0] =~ /\b(nginx_ssl_session[\w:]+)/g }

sub labels_of {
    my ($metric) = @_;
    my %labels = map { $_ => 1 } map { keys %$_ } @{ $prometheus->api('series', 'match[]' => $metric) };
    return keys %labels;
}

# The metrics of an expression exist, their labels, and the values that it compares these with.
sub names_are_there {
    my ($what, $expression) = @_;
    my @wrong;
    while ($expression =~ /\b(nginx_ssl_session[\w:]+)(?:\{([^}]*)\})?/g) {
        my ($metric, $matchers) = ($1, $2 // '');
        my $family = $metric =~ s/_(?:bucket|sum|count)$//r;
        push @wrong, $metric if $metric !~ /:/ && !$type{$metric} && ($type{$family} // '') ne 'histogram';
        for ('', split /,\s*(?=\w+[=!])/, $matchers) {
            my $selector = "$metric\{" . s/!=/=/r . '}';
            push @wrong, $selector if !($known{$selector} ||= @{ $prometheus->api('series', 'match[]' => $selector) });
        }
    }
    push @wrong, grep { !$label{$_} } map { split /,\s*/ } $expression =~ /\b(?:by|on|without|ignoring|group_left) \(([^)]*)\)/g;
    is_deeply \@wrong, [], "$what: names";
}
