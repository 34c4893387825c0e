# ssl_session_status: the page, in a browser.

use strict;
use warnings;
use utf8;

use lib 't/lib';
use SSLSession::Fixture;
use JSON::PP ();
use Test::More;

plan skip_all => 'no Chromium' if !SSLSession::Browser::binary();

# A name as nobody would give it, and that nginx takes.
my $name  = '<img src=x onerror=alert(1)>' . '-long' x 12;
my $json  = JSON::PP->new->canonical;
my $certs = certs();
my $redis = redis();
my ($port, $shown, $empty) = (free_port(), free_port(), free_port());
my $nginx = nginx(workers => 2, log => 'notice', conf => <<"CONF");
    ssl_session_backend "$name" { server 127.0.0.1:${\ $redis->port} fail_timeout=1s; }
    ssl_session_fetch shared:tls:1m "$name";
    ssl_session_store shared:tls:1m "$name";
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    server { listen 127.0.0.1:$port ssl; location / { return 200 "\$ssl_session_fetch_status"; } }
    server { listen 127.0.0.1:$shown; location = /sessions { ssl_session_status; } }
CONF
my $url = "http://127.0.0.1:$shown/sessions?format=html";

sub visit {
    my ($protocol, $session) = @_;
    my $client = tls_client(port => $port, protocol => $protocol, session => $session);
    defined $client->request or die 'no answer: ' . $client->error;
    return $client;
}

sub counted { decode(`curl -fsS 'http://127.0.0.1:$shown/sessions?format=json'`) }
sub decode  { JSON::PP->new->utf8->decode($_[0]) }

# What the tables show: lists of rows, the cells by group and name. Those of tiers are columns.
my $tables = <<'JS';
(() => {
  const text = cell => cell.innerText.trim();
  const under = head => {
    const low = [...(head.rows[1] || { cells: [] }).cells].map(text);
    return [...head.rows[0].cells].flatMap(th => th.rowSpan === 2 ? [text(th)]
      : low.splice(0, th.colSpan).map(name => `${text(th)} ${name}`));
  };
  const seen = {};
  for (const kind of ['listens', 'servers', 'protocols', 'zones']) {
    const table = document.querySelector(`#${kind} table`), names = under(table.tHead);
    seen[kind] = [...table.tBodies[0].rows]
      .map(row => Object.fromEntries([...row.cells].map((cell, n) => [names[n], text(cell)])));
  }
  const tiers = document.querySelector('#tiers table');
  seen.tiers = [...tiers.tHead.rows[0].cells].slice(1).map((th, n) => ({ Tier: text(th),
    ...Object.fromEntries([...tiers.tBodies].flatMap(part => [...part.rows].slice(1)
      .map(row => [`${text(part.rows[0])} ${text(row.cells[0])}`, text(row.cells[n + 1])]))) }));
  return seen;
})()
JS

# The same, made of the JSON.
sub expected {
    my ($all) = @_;
    my @statuses = qw(HIT MISS TIMEOUT ERROR DOWN CORRUPT FORGED FOREIGN TICKET SKIPPED);
    my $sum   = sub { my $sum = 0; $sum += $_ for values %{ $_[0] }; return $sum };
    my $share = sub { my ($part, $of) = @_; return $of ? sprintf '%.1f %%', int($part / $of * 1000) / 10 : '–' };
    my $times = sub {
        my ($group, $of) = @_;
        return map { ("${group}p$_" => seconds($of->{"p$_"}, $of->{count})) } 50, 90, 99;
    };
    my %seen;
    $seen{listens} = [ map { my $one = $_; my ($new, $hand) = @$one{qw(new_sessions handshakes)}; +{
        Address => $one->{listen}, Protocol => $one->{protocol}, 'Lookups outcomes' => '',
        'Handshakes all' => $sum->($hand), 'Handshakes resumed' => $hand->{resumed},
        'Handshakes share' => $share->($hand->{resumed}, $sum->($hand)),
        map({ ("Lookups $_" => $one->{fetches}{$_}) } @statuses), 'Lookups unusable hits' => $one->{unusable_hits},
        map({ ("New sessions $_" => $new->{$_}) } qw(STORED SKIPPED DROPPED TICKET)),
    } } grep { $sum->($_->{handshakes}) } @{ $all->{listens} } ];
    $seen{servers} = [ map { my $one = $_; my ($down, $up) = @$one{qw(down_workers available_workers)}; +{
        Server => $one->{server}, Backend => $one->{backend},
        State => $down ? 'down on ' . $down . ' of ' . ($down + $up) . ' workers' : $up ? 'up' : 'not asked',
        'Requests all' => $one->{requests}, 'Requests in flight' => $one->{in_flight},
        'Requests queue full' => $one->{queue_full},
        map({ ("Errors $_" => $one->{errors}{$_}) } qw(refused timeout lost)),
        'Health failures' => $one->{failures}, map({ ("Health to $_" => $one->{transitions}{$_}) } qw(down up)),
        'Connections all' => $one->{connections},
        map({ ("Connections TLS $_" => $one->{tls_handshakes}{$_}) } qw(new reused)),
        map({ ("Bytes $_" => bytes($one->{bytes}{$_})) } qw(received sent)),
    } } @{ $all->{servers} } ];
    $seen{tiers} = [ map { my $one = $_; +{
        Tier => $one->{tier}, 'Lookups all' => $sum->($one->{lookups}),
        'Lookups hits' => $share->($one->{lookups}{HIT}, $sum->($one->{lookups})),
        'Lookups outcomes' => '', map({ ("Lookups $_" => $one->{lookups}{$_}) } grep { !/FORGED|FOREIGN|TICKET|SKIPPED/ } @statuses),
        'Lookups merged' => $one->{merged_lookups}, 'Lookups takes' => $one->{takes},
        $times->('Lookups ', $one->{lookup_seconds}),
        'Sessions stored' => $one->{stores}, 'Sessions removed' => $one->{removals}, 'Sessions evicted' => $one->{evictions},
        map({ ('Dropped ' . tr/_/ /r => $one->{drops}{$_}) } qw(unavailable queue_full no_room no_memory)),
        map({ ("Bytes $_" => bytes($one->{bytes}{$_})) } qw(fetched stored)),
    } } @{ $all->{tiers} } ];
    $seen{protocols} = [ map { my $of = $_->{suspension_seconds}; +{
        Protocol => $_->{protocol}, suspended => $of->{count}, $times->('', $of),
    } } grep { $_->{suspension_seconds}{count} } @{ $all->{protocols} } ];
    $seen{zones} = [ map { my ($size, $free) = @$_{qw(size_bytes free_bytes)}; +{
        Tier => $_->{tier}, entries => $_->{entries}, free => bytes($free), of => bytes($size),
        used => $share->($size - $free, $size),
    } } @{ $all->{zones} } ];
    return decode(JSON::PP->new->utf8->encode(\%seen) =~ s/:(\d+)(?=[,}])/:"$1"/gr);
}

sub seconds {
    my ($seconds, $count) = @_;
    return $count ? '> 8.4 s' : '–' if !defined $seconds;
    return sprintf '%.0f µs', $seconds * 1e6 if $seconds < 1e-3;
    return $seconds < 1 ? (sprintf '%.3g ms', $seconds * 1e3) : sprintf '%.3g s', $seconds;
}

sub bytes {
    my ($n) = @_;
    my @units = qw(B kB MB);
    $n /= 1000, shift @units while $n >= 999.5;
    return $units[0] eq 'B' ? "$n B" : sprintf('%#.3g', $n) =~ s/\.$//r . " $units[0]";
}

my $page = browser(width => 1280);
sub text   { return $page->eval("document.getElementById('$_[0]').innerText") }
sub tables { return $page->eval($tables) }

# Waits until the page has come to what the JSON says, and looks at each number.
sub is_shown {
    my ($what) = @_;
    my ($seen, $all);
    eval {
        wait_until {
            ($seen, $all) = (tables(), expected(counted()));
            $json->encode($seen) eq $json->encode($all);
        } 10, 'the page';
    };
    return is_deeply $seen, $all, $what;
}

my $session = visit('TLSv1.3')->session;
visit('TLSv1.3', $session) for 1 .. 6;
visit('TLSv1.2');
$page->open($url);
wait_until { text('state') eq 'Live' } 10, 'the page to be live';

subtest 'all numbers are those of the JSON' => sub {
    is_shown('after some handshakes');
    my $seen = tables();
    is scalar @{ $seen->{listens} }, 2, 'rows';
    my ($of) = grep { $_->{Protocol} eq 'TLSv1.3' } @{ $seen->{listens} };
    is $of->{'Handshakes resumed'}, 6, 'the resumed ones';
    is $of->{'Lookups HIT'}, 6, 'and their lookups';
    is text('share-all'), 'since start 75.0 %: 6 of 8', 'the share of all';
};

subtest 'it follows' => sub {
    visit('TLSv1.3', $session) for 1 .. 3;
    # Found in Redis only, after it was suspended.
    my $elsewhere = with_session_id($session, issue_id('TLSv1.3'));
    visit('TLSv1.3', $elsewhere) for 1 .. 2;
    is_shown('after more of them');
    is text('share-all'), 'since start 69.2 %: 9 of 13', 'the share of all';
    is text('share'), '60.0 %', 'and of the last minute';
    is text('rate-of'), '2 full, 3 resumed', 'which these are';
    like text('rate'), qr/^[\d.]+$/, 'their rate';
    like text('p50'), qr/^[\d.]+ [µm]s$/, 'a lookup';
    like $page->eval('document.querySelector("#share-line path").getAttribute("d")'), qr/^M[\d.]+ 56L/, 'a line';

    $page->eval('document.getElementById("minute").click()');
    my ($of) = grep { $_->{Protocol} eq 'TLSv1.3' } @{ tables()->{listens} };
    is_deeply [ @$of{ 'Handshakes all', 'Lookups HIT', 'Lookups MISS' } ], [ 5, 3, 2 ], 'tables of the last minute';
    $page->eval('document.getElementsByName("period")[0].click()');
    is_shown('and since start');
    my $parts = '[...document.querySelectorAll("#listens tbody tr:last-child .bar span")]';
    is_deeply $page->eval("$parts.map(part => part.hidden ? 0 : +part.style.flexGrow)"), [ 9, 2, 0, 0, 0, 0, 0, 0, 0, 0 ],
        'outcomes as parts of a bar';
    is scalar(grep { $_ eq $url } $page->requests), 1, 'the page was loaded once';
};

subtest 'times' => sub {
    my $all = counted();
    my $of  = sub { $page->eval('[...document.querySelectorAll("#histogram rect")].map(bar => bar.textContent)') };
    my $said = sub { [ map { my ($bound, $n) = @$_; 'up to ' . seconds($bound) . ": $n" } @{ $_[0]{buckets} } ] };
    my ($tier) = grep { $_->{tier} eq $name } @{ $all->{tiers} };
    is_deeply $of->(), $said->($tier->{lookup_seconds}), 'of lookups';
    my ($protocol) = grep { $_->{protocol} eq 'TLSv1.3' } @{ $all->{protocols} };
    is_deeply $page->eval('[...document.querySelectorAll("#of option")].map(one => one.textContent)'),
        [ "Lookups: $name", 'Suspended: TLSv1.3' ], 'what there is to choose';
    $page->eval('$("of").value = "Suspended: TLSv1.3"; $("of").dispatchEvent(new Event("change"))');
    is_deeply $of->(), $said->($protocol->{suspension_seconds}), 'of handshakes';
    like text('said'), qr/^2 times: mean /, 'in words';
};

subtest 'a server that goes, and comes back' => sub {
    is text('servers-now'), '1 up', 'up';
    $redis->stop;
    wait_until { visit('TLSv1.2'); text('servers-now') eq '1 of 1 down' } 15, 'down';
    like tables()->{servers}[0]{State}, qr/^down on [12] of [12] workers$/, 'on so many workers';
    is_shown('down');
    $redis->start;
    wait_until { visit('TLSv1.2'); text('servers-now') eq '1 up' } 15, 'up';
    is tables()->{servers}[0]{State}, 'up', 'again';
    is_shown('up');
};

subtest 'names are text' => sub {
    is $page->eval('document.querySelectorAll("img, main script").length'), 0, 'and nothing else';
    is tables()->{servers}[0]{Backend}, $name, 'a backend';
    ok scalar(grep { $_->{Tier} eq $name } @{ tables()->{tiers} }), 'a tier';
};

subtest 'a page in the background asks nothing' => sub {
    my $asked = sub { scalar(() = $page->requests) };
    $page->eval('Object.defineProperty(document, "hidden", { value: true, configurable: true })');
    wait_until { !$page->eval('busy') } 10, 'the last answer';
    my $before = $asked->();
    $page->eval('ask()') for 1 .. 3;
    is $asked->(), $before, 'nothing';
    $page->eval('delete document.hidden; document.dispatchEvent(new Event("visibilitychange"))');
    wait_until { $asked->() > $before } 10, 'a request';
    pass 'at once when it is seen again';
};

for my $width (360, 1280) {
    $page->viewport($width, 740, $width < 500);
    my ($needs, $has) = map { $page->eval("document.documentElement.${_}Width") } qw(scroll client);
    cmp_ok $needs, '<=', $has, "$width pixels: nothing beyond";
    is $page->eval('innerWidth'), $width, 'the width it has';
}
# Widest of all, with the colours and the names of ten outcomes.
my ($needs, $has) = map { $page->eval("document.querySelector('#listens .scroll').${_}Width") } qw(scroll client);
cmp_ok $needs, '<=', $has, 'on a desktop handshakes need no scrolling';
my %background = map {
    $page->color_scheme($_);
    ($_ => $page->eval('getComputedStyle(document.body).backgroundColor'));
} qw(light dark);
is_deeply \%background, { light => 'rgb(244, 246, 248)', dark => 'rgb(17, 21, 27)' }, 'dark where that is wanted';

is_deeply [ $page->complaints ], [], 'the browser has nothing to say';
is_deeply { map { $_ => 1 } $page->requests }, { map { $_ => 1 } $url, $url =~ s/html/json/r }, 'and was nowhere else';

subtest 'nginx that stops, and comes back' => sub {
    $nginx->stop;
    wait_until { text('state') =~ /^Stale: no data since \d\d:\d\d:\d\d$/ } 15, 'stale';
    like text('when'), qr/^for \d+ s \(.+\)$/, 'for how long, and why';
    like $page->eval('document.title'), qr/^▲ /, 'in the title too';
    ok scalar @{ tables()->{listens} }, 'what was known is still there';
    $nginx->start;
    wait_until { text('state') eq 'Live' } 15, 'live';
    like text('anew'), qr/^nginx was started again: the counters are new at \d/, 'counters are new';
    visit('TLSv1.3');
    is_shown('and are shown');
    is text('share-all'), 'since start 0.0 %: 0 of 1', 'from their start';
};

subtest 'where nothing is counted' => sub {
    my $one = nginx(log => 'notice', conf => "server { listen 127.0.0.1:$empty; location / { ssl_session_status; } }");
    $page->open("http://127.0.0.1:$empty/?format=html");
    wait_until { text('state') eq 'Live' } 10, 'the page to be live';
    is $page->eval('document.querySelectorAll("main table").length'), 5, 'there are tables';
    like text($_), qr/\nNothing counted yet\.$/, "$_: nothing" for qw(listens servers tiers protocols);
    is $page->eval('getComputedStyle(document.getElementById("histogram")).display'), 'none', 'and no picture of it';
    is $page->eval('document.getElementById("zones").hidden'), JSON::PP::true, 'no zones';
    is text($_), '', "no $_" for qw(keys epochs);
    like text('build'), qr/^Module [\d.]+, nginx /, 'what runs';
};

subtest 'keys, the epoch and versions' => sub {
    my ($tls, $told, $store) = (free_port(), free_port(), redis());
    my @key = map { new_session_key() } 1, 2;
    my $one = nginx(log => 'notice', conf => <<"CONF");
    ssl_session_backend store { server 127.0.0.1:${\ $store->port}; connect_timeout 5s; fetch_timeout 5s; }
    ssl_session_key     $key[0];
    ssl_session_key     $key[1];
    ssl_session_fetch   store;
    ssl_session_store   store;
    ssl_session_epoch   epoch;
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    server { listen 127.0.0.1:$tls ssl; location / { return 204; } }
    server { listen 127.0.0.1:$told; location / { ssl_session_status; } }
CONF
    $page->open("http://127.0.0.1:$told/?format=html");
    wait_until { text('state') eq 'Live' } 10, 'the page to be live';
    is text('keys'), 'Keys of http: ' . join(', ', map { unpack 'H2', issue_id('TLSv1.3', $_) } @key) . '.', 'key ids';
    is text('epochs'), 'Epoch "epoch" of http: not heard yet.', 'an epoch';
    my $client = tls_client(port => $tls, protocol => 'TLSv1.3');
    $client->request;
    my $session = ($client->sessions)[0];
    my $visit = sub { tls_client(port => $tls, protocol => 'TLSv1.3', session => $session)->request };
    wait_until { $visit->(); text('epochs') eq 'Epoch "epoch" of http: none.' } 10, 'that is heard';
    $store->cmd('SET', 'tls:epoch', 1_700_000_000);
    wait_until { $visit->(); text('epochs') eq 'Epoch "epoch" of http: 2023-11-14 22:13:20 UTC.' } 10, 'and set';
    my $build = decode(`curl -fsS 'http://127.0.0.1:$told/?format=json'`)->{build};
    my $built = $build->{openssl_built} && " (built for $build->{openssl_built})";
    is text('build'), "Module $build->{version}, nginx $build->{nginx}, OpenSSL $build->{openssl}$built.", 'versions';
};

$page->close;
is_deeply [ $page->process->group ], [], 'the browser leaves nothing behind';
done_testing;
