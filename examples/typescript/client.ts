// Sends and receives end-to-end encrypted texts through a relay, over its native protocol (v2).
// Runs in browsers and in Node: cli.ts and index.html use it. Only standard WebCrypto and WebSocket.

import { create, fromBinary, toBinary, type MessageInitShape } from "@bufbuild/protobuf";
import { ClientFrameSchema, Code, ServerFrameSchema, type Delivery, type ServerFrame } from "./relay_pb";

type Bytes = Uint8Array<ArrayBuffer>;
type Request = NonNullable<MessageInitShape<typeof ClientFrameSchema>["frame"]>;

export const hex = (bytes: Uint8Array) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
export const unhex = (text: string): Bytes => Uint8Array.from(text.match(/../g) ?? [], (byte) => parseInt(byte, 16));
const join = (...parts: Uint8Array[]): Bytes => Uint8Array.from(parts.flatMap((part) => Array.from(part)));
const utf8 = (text: string): Bytes => join(new TextEncoder().encode(text));
const random = (length: number): Bytes => crypto.getRandomValues(new Uint8Array(length));
const sha256 = async (bytes: Bytes): Promise<Bytes> => new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
const rawPublic = async (key: CryptoKey): Promise<Bytes> => new Uint8Array(await crypto.subtle.exportKey("raw", key));

/** What a device keeps to itself: the key of its mailbox, and the key that texts are sealed for. */
export type Keys = { sign: CryptoKey; open: CryptoKey; mailbox: Bytes; address: Bytes };

export const newKeys = (): string => hex(random(64));

export async function loadKeys(text: string): Promise<Keys> {
  const seeds = unhex(text.trim());
  const [sign, mailbox] = await privateKey("Ed25519", "70", seeds.slice(0, 32), ["sign"]);
  const [open, sealing] = await privateKey("X25519", "6e", seeds.slice(32), ["deriveBits"]);
  // The address is what others need to write to us: where, and for which key.
  return { sign, open, mailbox, address: join(mailbox, sealing) };
}

/** WebCrypto takes private keys in PKCS #8 only: a fixed head (RFC 8410), then the seed. Its JWK has the public key. */
async function privateKey(name: string, kind: string, seed: Bytes, uses: KeyUsage[]): Promise<[CryptoKey, Bytes]> {
  const encoded = join(unhex(`302e020100300506032b65${kind}04220420`), seed);
  const key = await crypto.subtle.importKey("pkcs8", encoded, name, true, uses);
  const { x = "" } = await crypto.subtle.exportKey("jwk", key);
  return [key, Uint8Array.from(atob(x.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0))];
}

/** The key of one text. `sender` is made for this text only, so the key never returns, and its nonce may be 0. */
async function textKey(ours: CryptoKey, theirs: Bytes, sender: Bytes, address: Bytes): Promise<CryptoKey> {
  const peer = await crypto.subtle.importKey("raw", theirs, "X25519", true, []);
  const shared = await crypto.subtle.deriveBits({ name: "X25519", public: peer }, ours, 256);
  const ikm = await crypto.subtle.importKey("raw", shared, "HKDF", false, ["deriveKey"]);
  const info = join(utf8("vauchi-relay example text"), sender, address);
  const hkdf = { name: "HKDF", hash: "SHA-256", salt: new Uint8Array(0), info };
  return crypto.subtle.deriveKey(hkdf, ikm, { name: "AES-GCM", length: 256 }, false, ["encrypt", "decrypt"]);
}

const NONCE = { name: "AES-GCM", iv: new Uint8Array(12) };

export async function seal(text: string, address: Bytes): Promise<Bytes> {
  const once = (await crypto.subtle.generateKey("X25519", true, ["deriveBits"])) as CryptoKeyPair;
  const sender = await rawPublic(once.publicKey);
  const key = await textKey(once.privateKey, address.slice(32), sender, address);
  return join(sender, new Uint8Array(await crypto.subtle.encrypt(NONCE, key, utf8(text))));
}

export async function unseal(blob: Bytes, keys: Keys): Promise<string> {
  const sender = blob.slice(0, 32);
  const key = await textKey(keys.open, sender, sender, keys.address);
  return new TextDecoder().decode(await crypto.subtle.decrypt(NONCE, key, blob.slice(32)));
}

/** A connection to a relay. */
export class Relay {
  private requests = 0;
  private waiting = new Map<number, (frame: ServerFrame) => void>();
  private pushed: ServerFrame[] = [];
  private wake = () => {};
  private closed = "";

  private constructor(private socket: WebSocket, private origin: string) {
    socket.binaryType = "arraybuffer";
    socket.onmessage = ({ data }) => this.take(fromBinary(ServerFrameSchema, new Uint8Array(data)));
    socket.onclose = ({ code, reason }) => {
      this.closed = `the connection has ended: ${code} ${reason}`;
      this.waiting.forEach((_, request) => this.take(create(ServerFrameSchema, { answers: request })));
      this.wake();
    };
    socket.onerror = () => {}; // onclose follows.
  }

  /** `socket` is the class to use where there is no WebSocket in the language: Node before 22. */
  static async connect(url: string, socket = globalThis.WebSocket): Promise<{ relay: Relay; welcome: ServerFrame }> {
    const { host } = new URL(url.replace(/^ws/, "http"));
    // Proofs name the host that we dial; 443 and 80 are not written, whatever the scheme.
    const relay = new Relay(new socket(url, "vauchi.relay.v2"), host.replace(/:(80|443)$/, ""));
    return { relay, welcome: await relay.push("welcome") };
  }

  private take(frame: ServerFrame) {
    if (frame.answers === 0) this.pushed.push(frame);
    else this.waiting.get(frame.answers)?.(frame);
    this.wake();
  }
}
