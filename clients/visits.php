<?php
// curl handles and streams: one|share|streams URL N P (P with curl_multi, which has a cache of its own).
[, $how, $url, $one_by_one, $at_once] = $argv;

function handle($url, $share = null) {
    $curl = curl_init($url);
    curl_setopt_array($curl, [CURLOPT_CAINFO => getenv('CLIENT_CA'), CURLOPT_RETURNTRANSFER => true]);
    if ($share) curl_setopt($curl, CURLOPT_SHARE, $share);
    return $curl;
}

$share = $how == 'share' ? curl_share_init() : null;
if ($share) curl_share_setopt($share, CURLSHOPT_SHARE, CURL_LOCK_DATA_SSL_SESSION);
$one = handle($url);

for ($n = 0; $n < $one_by_one; $n++) {
    if ($how == 'streams') {
        echo file_get_contents($url, false, stream_context_create(['ssl' => ['cafile' => getenv('CLIENT_CA')]]));
    } else {
        echo curl_exec($how == 'one' ? $one : handle($url, $share));
    }
}
if ($at_once) {
    $multi = curl_multi_init();
    for ($n = 0; $n < $at_once; $n++) curl_multi_add_handle($multi, $handles[] = handle($url, $share));
    do {
        curl_multi_exec($multi, $running);
        curl_multi_select($multi);
    } while ($running);
}
