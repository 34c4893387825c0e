// https.get() and fetch(): https|fetch URL N P.
const https = require('https');

const [, , api, url, oneByOne, atOnce] = process.argv;

const get = () => new Promise((done, failed) => {
    https.get(url, { ca: require('fs').readFileSync(process.env.CLIENT_CA) }, response => {
        response.on('data', data => process.stdout.write(data)).on('close', done);
    }).on('error', failed);
});
// NODE_EXTRA_CA_CERTS has the CA.
const visit = api === 'https' ? get : async () => process.stdout.write(await (await fetch(url)).text());

(async () => {
    for (let n = 0; n < oneByOne; n++) await visit();
    await Promise.all(Array.from({ length: Number(atOnce) }, visit));
})();
