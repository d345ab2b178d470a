// A file into the service's store, by the REST interface: named by its sha256, announced, and sent in parts. After
// trouble that passes, and after a pause, it goes on where the service says that the file ends.

const uploader = document.getElementById("uploader")
const [picker, drop, bar, phase, detail, fault, pause, cancel] =
  ["file", "drop", "bar", "phase", "detail", "upload-fault", "pause", "cancel"].map((id) => document.getElementById(id))

const MIB = 2 ** 20
const [FIRST_PART, LARGEST_PART] = [MIB, 32 * MIB]
const LONGEST_WAIT = 30 // seconds
const PASSING = [0, 408, 409, 429, 502, 503, 504] // answers that say: not now; 0: there was none

class Refused extends Error {}
class Canceled extends Error {}

const sleep = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds))

// --- numbers in words -------------------------------------------------------------------------------------

function bytes(number) {
  const units = [["GiB", 2 ** 30], ["MiB", MIB], ["KiB", 1024]]
  const [unit, size] = units.find(([, size]) => number >= size) ?? ["bytes", 1]
  return `${size === 1 ? number : (number / size).toFixed(1)} ${unit}`
}

function duration(seconds) {
  if (seconds < 60) return `${Math.ceil(seconds)} s`
  return seconds < 3600 ? `${Math.ceil(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`
}

// How far it is, and how fast it went in the last moments.
class Pace {
  #marks = []

  show(done, total) {
    const rate = this.#rate(done)
    const speed = rate ? `, ${bytes(rate)}/s, ${duration((total - done) / rate)} left` : ""
    bar.value = done / total
    detail.textContent = `${Math.floor((100 * done) / total)} %, ${bytes(done)} of ${bytes(total)}${speed}`
  }

  #rate(done) {
    const now = performance.now() / 1000
    this.#marks.push([now, done])
    while (this.#marks.length > 2 && now - this.#marks[0][0] > 5) this.#marks.shift()
    const [since, before] = this.#marks[0]
    return now - since > 0.2 && done > before ? (done - before) / (now - since) : undefined
  }
}

// --- the service ------------------------------------------------------------------------------------------

async function ask(method, path, body) {
  const headers = { Accept: "application/json", ...(body && { "Content-Type": "application/json" }) }
  try {
    const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) })
    return { status: answer.status, retry: answer.headers.get("Retry-After"), text: await answer.text() }
  } catch {
    return { status: 0 }
  }
}

function read({ status, text }) {
  let document
  try {
    document = text ? JSON.parse(text) : null
  } catch {
    throw new Refused(`something in between answered instead of the service, with status ${status}`)
  }
  if (status >= 200 && status < 300) return document
  throw new Refused(document?.detail ?? `the service answered with status ${status}`)
}

// --- sending ----------------------------------------------------------------------------------------------

class Sending {
  #file
  #digest = null // the sha256, once it is known
  #upload = null // as the service last described it
  #request = null // the part on its way
  #hasher = null
  #goOn = null // ends the pause
  #paused = Promise.resolve()
  #canceled = false

  constructor(file) {
    this.#file = file
  }

  // The upload, which is finished. Throws Refused where the service will not have it, and Canceled.
  async run() {
    this.#digest ??= await this.#hash()
    const { name, size } = this.#file
    const about = { name: name.slice(-200), size, sha256: this.#digest }
    this.#upload = await this.#patiently(() => ask("POST", "/api/v1/uploads", about))
    const pace = new Pace()
    let [part, wait] = [FIRST_PART, 0.5]
    while (!this.#upload.finished) {
      await this.#mayGoOn()
      say("Sending it")
      pace.show(this.#upload.received, size)
      const before = this.#upload.received
      const answer = await this.#send(part, (sent) => pace.show(Math.min(before + sent, size), size))
      if (!PASSING.includes(answer.status)) {
        this.#upload = read(answer)
        ;[part, wait] = [Math.min(2 * part, LARGEST_PART), 0.5]
      } else {
        await this.#recover(answer, wait)
        this.#upload = await this.#patiently(() => ask("GET", `/api/v1/uploads/${this.#upload.id}`))
        ;[part, wait] = [FIRST_PART, this.#upload.received > before ? 0.5 : Math.min(2 * wait, LONGEST_WAIT)]
      }
    }
    return this.#upload
  }

  get paused() {
    return this.#goOn !== null
  }

  pause() {
    this.#paused = new Promise((done) => { this.#goOn = done })
    this.#request?.abort()
  }

  goOn() {
    this.#goOn?.()
    this.#goOn = null
  }

  async cancel() {
    this.#canceled = true
    this.#hasher?.terminate()
    this.#request?.abort()
    this.goOn()
    for (let attempt = 0; this.#upload && attempt < 5; attempt++) {
      const answer = await ask("DELETE", `/api/v1/uploads/${this.#upload.id}`)
      if (!PASSING.includes(answer.status)) break // 409: what was on its way is still being written down
      await sleep(0.5)
    }
  }

  #hash() {
    say("Reading it, to name it by its sha256")
    const pace = new Pace()
    this.#hasher = new Worker(uploader.dataset.hasher)
    this.#hasher.postMessage(this.#file)
    return new Promise((done, failed) => {
      this.#hasher.onerror = () => failed(new Refused("this browser cannot compute a sha256 in the background"))
      this.#hasher.onmessage = ({ data }) => {
        if (data.read !== undefined) return pace.show(data.read, this.#file.size)
        this.#hasher.terminate()
        if (data.error) failed(new Refused(data.error))
        else done(data.sha256)
      }
    })
  }

  // Unlike fetch, this tells how much of a part is on its way.
  #send(size, progress) {
    const from = this.#upload.received
    const request = (this.#request = new XMLHttpRequest())
    request.open("PATCH", `/api/v1/uploads/${this.#upload.id}`)
    request.setRequestHeader("Accept", "application/json")
    request.setRequestHeader("Content-Type", "application/octet-stream")
    request.setRequestHeader("Upload-Offset", String(from))
    request.upload.onprogress = (event) => progress(event.loaded)
    return new Promise((done) => {
      request.onloadend = () => {
        this.#request = null
        done({ status: request.status, retry: request.getResponseHeader("Retry-After"), text: request.responseText })
      }
      request.send(this.#file.slice(from, from + size))
    })
  }

  async #patiently(question) {
    for (let wait = 0.5; ; wait = Math.min(2 * wait, LONGEST_WAIT)) {
      await this.#mayGoOn()
      const answer = await question()
      if (!PASSING.includes(answer.status)) return read(answer)
      await this.#recover(answer, wait)
    }
  }

  async #recover({ status, retry }, wait) {
    if (this.paused || this.#canceled) return
    const seconds = Math.max(wait, Number(retry ?? 0))
    say(`${status ? "The service is busy" : "The connection broke"}; trying again in ${duration(seconds)}`)
    await sleep(seconds)
  }

  async #mayGoOn() {
    if (this.paused) say("Paused")
    await this.#paused
    if (this.#canceled) throw new Canceled()
  }
}

// --- the page ---------------------------------------------------------------------------------------------

let sending = null

function say(text) {
  phase.textContent = text
}

async function start(file) {
  if (file.size === 0) return fail(new Refused(`${file.name} is empty`))
  sending = new Sending(file)
  document.getElementById("sending-name").textContent = `${file.name}, ${bytes(file.size)}`
  bar.value = 0
  detail.textContent = ""
  await go()
}

async function go() {
  shape("going")
  fault.textContent = ""
  try {
    arrived(await sending.run())
  } catch (error) {
    if (!(error instanceof Canceled)) fail(error)
  }
}

function shape(state) {
  uploader.dataset.state = state
  pause.textContent = state === "failed" ? "Try again" : sending?.paused ? "Go on" : "Pause"
}

function fail(error) {
  fault.textContent = error.message
  shape(sending ? "failed" : "ready")
  say("It stopped")
}

// The form below takes it in.
function arrived(upload) {
  say("It is here")
  detail.textContent = `sha256 ${upload.sha256}`
  bar.value = 1
  shape("arrived")
  const field = document.getElementById("i-upload")
  if (![...field.options].some((option) => option.value === upload.sha256)) {
    field.add(new Option(`${upload.name}, ${bytes(upload.size)}`, upload.sha256))
  }
  field.value = upload.sha256
  field.dispatchEvent(new Event("input", { bubbles: true }))
  field.scrollIntoView({ block: "center" })
}

picker.addEventListener("change", () => { if (picker.files.length) start(picker.files[0]) })
pause.addEventListener("click", () => {
  if (uploader.dataset.state === "failed") return go()
  if (sending.paused) sending.goOn()
  else sending.pause()
  shape("going")
})
cancel.addEventListener("click", async () => {
  shape("ready")
  picker.value = ""
  fault.textContent = ""
  await sending.cancel()
  sending = null
})
for (const kind of ["dragover", "dragleave", "drop"]) {
  drop.addEventListener(kind, (event) => {
    event.preventDefault()
    drop.classList.toggle("over", kind === "dragover")
    if (kind === "drop" && event.dataTransfer.files.length && !drop.inert) start(event.dataTransfer.files[0])
  })
}
document.getElementById("by-hand").open = false
shape("ready")
