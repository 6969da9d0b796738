// Signs deliveries as real senders do, by the senders' own libraries.
//
// Standard input, a line each: {"sender", "secret" or "key" (PKCS #8 PEM),
// "body", "id", "at" (Unix seconds), "claims", "alg", "url"}. Standard output, a line
// for each of them: the headers, as JSON.
import { createHash, createPrivateKey, webcrypto } from "node:crypto";
import { createInterface } from "node:readline";

globalThis.crypto ??= webcrypto; // Node 18 does not put it there itself

const bearer = (token) => ({ authorization: `Bearer ${token}` });

// Standard Webhooks and its parent, Svix, differ in the names of their headers.
const standard = (Webhook, prefix, { secret, id, at, body }) => ({
  [`${prefix}-id`]: id,
  [`${prefix}-timestamp`]: String(at),
  [`${prefix}-signature`]: new Webhook(secret).sign(id, new Date(at * 1000), body),
});

const senders = {
  async github({ secret, id, body }) {
    const { sign } = await import("@octokit/webhooks-methods");
    return {
      "x-github-event": "push",
      "x-github-delivery": id,
      "x-hub-signature-256": await sign(secret, body),
    };
  },
  async "standard-webhooks"(delivery) {
    const { Webhook } = await import("standardwebhooks");
    return standard(Webhook, "webhook", delivery);
  },
  async svix(delivery) {
    const { Webhook } = await import("svix");
    return standard(Webhook, "svix", delivery);
  },
  async stripe({ secret, at, body }) {
    const { default: Stripe } = await import("stripe");
    const header = { payload: body, secret, timestamp: at };
    return { "stripe-signature": Stripe.webhooks.generateTestHeaderString(header) };
  },
  async "http-message-signatures"({ secret, key, alg, id, at, body, url }) {
    const { createSigner, httpbis } = await import("http-message-signatures");
    const digest = createHash("sha512").update(body).digest("base64");
    const headers = { "content-type": "application/json", "content-digest": `sha-512=:${digest}:` };
    const { headers: signed } = await httpbis.signMessage({
      key: createSigner(key ? createPrivateKey(key) : Buffer.from(secret), alg, "sender"),
      fields: ["@method", "@authority", "@path", "@query", "content-type", "content-digest"],
      params: ["keyid", "alg", "created", "expires", "nonce"],
      paramValues: { created: new Date(at * 1000), nonce: id },
    }, { method: "POST", url, headers });
    return signed;
  },
  async jose({ secret, key, alg, claims }) {
    const { SignJWT, UnsecuredJWT, importPKCS8 } = await import("jose");
    if (alg === "none") return bearer(new UnsecuredJWT(claims).encode());
    const signer = key ? await importPKCS8(key, alg) : new TextEncoder().encode(secret);
    return bearer(await new SignJWT(claims).setProtectedHeader({ alg, typ: "JWT" }).sign(signer));
  },
  async jsonwebtoken({ secret, key, alg, claims }) {
    const { default: jwt } = await import("jsonwebtoken");
    const signer = alg === "none" ? null : (key ?? secret);
    return bearer(jwt.sign(claims, signer, { algorithm: alg, noTimestamp: !("iat" in claims) }));
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const delivery = JSON.parse(line);
  console.log(JSON.stringify(await senders[delivery.sender](delivery)));
}
