// The SHA-256 of a file of any size, as a Web Worker: in goes a Blob, out come {read: BYTES} now and then and
// {sha256: HEX} in the end, or {error: SENTENCE}. The browser's own crypto.subtle wants all of it in memory at once,
// and is not there on pages without TLS.

const PIECE = 4 * 2 ** 20
const K = Int32Array.of(
  0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
  0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
  0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
  0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
  0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
  0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
  0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
  0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
)

const state = new Int32Array(8)
const words = new Int32Array(64)

function begin() {
  state.set([0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19])
}

// FIPS 180-4, section 6.2.2, on the 64 bytes of a DataView from `at` on.
function compress(view, at) {
  for (let t = 0; t < 16; t++) words[t] = view.getInt32(at + 4 * t)
  for (let t = 16; t < 64; t++) {
    const x = words[t - 15]
    const y = words[t - 2]
    const s0 = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3)
    const s1 = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10)
    words[t] = (words[t - 16] + s0 + words[t - 7] + s1) | 0
  }
  let a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5], g = state[6], h = state[7]
  for (let t = 0; t < 64; t++) {
    const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7))
    const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10))
    const t1 = (h + s1 + ((e & f) ^ (~e & g)) + K[t] + words[t]) | 0
    const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0
    h = g
    g = f
    f = e
    e = (d + t1) | 0
    d = c
    c = b
    b = a
    a = (t1 + t2) | 0
  }
  state[0] += a
  state[1] += b
  state[2] += c
  state[3] += d
  state[4] += e
  state[5] += f
  state[6] += g
  state[7] += h
}

// Whole blocks; pieces but the last are made of such.
function update(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  for (let at = 0; at + 64 <= bytes.byteLength; at += 64) compress(view, at)
}

// What is left of the file behind its whole blocks, then a one, zeros, and the file's length in bits.
function finish(rest, length) {
  const padded = new Uint8Array(rest.byteLength < 56 ? 64 : 128)
  padded.set(rest)
  padded[rest.byteLength] = 0x80
  const end = new DataView(padded.buffer, padded.byteLength - 8)
  end.setUint32(0, Math.floor(length / 2 ** 29))
  end.setUint32(4, (length * 8) >>> 0)
  update(padded)
  return [...state].map((word) => (word >>> 0).toString(16).padStart(8, "0")).join("")
}

async function digest(file) {
  begin()
  let rest = new Uint8Array()
  for (let at = 0; at < file.size; at += PIECE) {
    const piece = new Uint8Array(await file.slice(at, at + PIECE).arrayBuffer())
    update(piece)
    rest = piece.subarray(piece.byteLength - (piece.byteLength % 64))
    postMessage({ read: at + piece.byteLength })
  }
  return finish(rest, file.size)
}

onmessage = async (message) => {
  try {
    postMessage({ sha256: await digest(message.data) })
  } catch (error) {
    postMessage({ error: `the file cannot be read (${error.message})` })
  }
}
