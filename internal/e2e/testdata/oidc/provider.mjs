// OpenID providers over TLS, by the library oidc-provider. A client "job" gets
// tokens from them as a job gets them from its CI.
//
// Arguments: a certificate and its key. Standard output: the port. Standard
// input, a line each: {"issuer", "keys"}: the provider of this issuer, at its
// path, publishes the keys of these kids from then on, and signs with the first.
// Each is answered with a line when it is so.
import { generateKeyPair, webcrypto } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:https";
import { createInterface } from "node:readline";
import { promisify } from "node:util";

globalThis.crypto ??= webcrypto; // Node 18 does not put it there itself
console.info = console.warn = () => {}; // what the library has to say to those who mean it
const { default: Provider } = await import("oidc-provider");

const [cert, key] = process.argv.slice(2);
const keys = new Map(); // by kid
const providers = new Map(); // by path

async function jwk(kid) {
  if (!keys.has(kid)) {
    const { privateKey } = await promisify(generateKeyPair)("rsa", { modulusLength: 2048 });
    keys.set(kid, { ...privateKey.export({ format: "jwk" }), kid, use: "sig", alg: "RS256" });
  }
  return keys.get(kid);
}

function provide(issuer, jwks) {
  const provider = new Provider(issuer, {
    jwks: { keys: jwks },
    clients: [{
      client_id: "job", client_secret: "secret", grant_types: ["client_credentials"],
      redirect_uris: [], response_types: [],
    }],
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (ctx, audience) => ({
          audience, scope: "main dev", accessTokenFormat: "jwt", accessTokenTTL: 300, jwt: { sign: { alg: "RS256" } },
        }),
      },
    },
    extraTokenClaims: (ctx, token) => ({ project_id: "1234", ref: token.scope }),
  });
  provider.proxy = true; // the test stands before it, and is whom the clients see
  return provider.callback();
}

const server = createServer({ cert: readFileSync(cert), key: readFileSync(key) }, (req, res) => {
  const path = `/${req.url.split("/", 2)[1]}`;
  req.originalUrl = req.url;
  req.baseUrl = path;
  req.url = req.url.slice(path.length);
  providers.get(path)(req, res);
});
server.listen(0, "localhost", () => console.log(server.address().port));

for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line);
  const jwks = await Promise.all(order.keys.map(jwk));
  providers.set(new URL(order.issuer).pathname, provide(order.issuer, jwks));
  console.log("ready");
}
server.close();
server.closeAllConnections();
