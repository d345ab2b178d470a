// One job, live. The server renders everything but the curve: an event only says that there is news.

const job = document.getElementById("job")
const stale = document.getElementById("stale")
const pause = (ms) => new Promise((done) => setTimeout(done, ms))

// --- the page: parts marked data-live are replaced where the server renders them differently --------------

let refreshing = Promise.resolve()
let announced = false

async function refreshSoon() {
  if (announced) return
  announced = true
  await pause(300) // news comes in bunches
  announced = false
  refreshing = refreshing.then(refresh) // one at a time, in order
}

async function refresh() {
  try {
    const answer = await fetch(location.pathname, { headers: { Accept: "text/html" } })
    if (!answer.ok) throw new Error(`status ${answer.status}`)
    const page = new DOMParser().parseFromString(await answer.text(), "text/html")
    document.title = page.title
    for (const fresh of page.querySelectorAll("[data-live]")) replace(document.getElementById(fresh.id), fresh)
    stale.hidden = true
  } catch {
    stale.hidden = false
  }
}

function replace(old, fresh) {
  if (old.dataset.live === "tail") return append(old, fresh)
  for (const details of old.querySelectorAll("details[open][id]")) {
    fresh.querySelector(`#${details.id}`)?.setAttribute("open", "")
  }
  if (!old.isEqualNode(fresh)) old.replaceWith(document.adoptNode(fresh))
}

// A log grows at its end: what is there stays, and so does the place at which somebody reads.
function append(log, fresh) {
  const follows = isAtEnd(log)
  const last = Number(log.lastElementChild?.dataset.event ?? 0)
  const lines = [...fresh.children].filter((line) => Number(line.dataset.event) > last)
  log.append(...lines.map((line) => document.adoptNode(line)))
  if (follows) toEnd(log)
}

const isAtEnd = (log) => log.scrollHeight - log.scrollTop - log.clientHeight < 8
const toEnd = (log) => { log.scrollTop = log.scrollHeight }

toEnd(document.getElementById("log"))

// --- the training curve: accuracies, the loss with its terms, eps and learning rate, speed, one above the other ---

const frame = document.getElementById("curve")
const epochs = new Map() // by number: a replayed stream says nothing new
let plots = []
let shown = ""

const colour = (name) => () => getComputedStyle(document.documentElement).getPropertyValue(name).trim()
const percent = (value) => (value == null ? "–" : `${(100 * value).toFixed(2)} %`)
const number = (digits) => (value) => value?.toPrecision(digits).replace(/\.?0+$/, "") ?? "–"
const TERMS = ["--clean-line", "--robust", "--third", "--good"]

// Lines of one panel: what a legend says, where the value is in an epoch, how it is drawn.
function panels(rows) {
  const heldOut = rows.some((row) => row.validation_accuracy != null)
  const training = heldOut ? { dash: [5, 4], width: 1.5 } : {}
  const unit = "levels" in frame.dataset ? 255 : 1
  const terms = [...new Set(rows.flatMap((row) => Object.keys(row.terms ?? {})))]
  return [
    {
      label: "accuracy, %", height: 240, range: [0, 1], ticks: (value) => Math.round(100 * value), show: percent,
      lines: [
        { label: "clean, held out", of: (row) => row.validation_accuracy, stroke: "--clean-line" },
        { label: "PGD, held out", of: (row) => row.validation_robust_accuracy, stroke: "--robust" },
        { label: heldOut ? "clean, training" : "clean accuracy", of: (row) => row.clean_accuracy, stroke: "--clean-line", ...training },
        { label: heldOut ? "adversarial, training" : "adversarial accuracy", of: (row) => row.adversarial_accuracy, stroke: "--robust", ...training },
        { label: heldOut ? "teacher, training" : "teacher's accuracy", of: (row) => row.teacher_accuracy, stroke: "--third", ...training },
      ],
    },
    {
      label: "loss", height: 190, show: (value) => value?.toFixed(4) ?? "–",
      lines: [
        { label: "loss", of: (row) => row.loss, stroke: "--loss" },
        ...(terms.length > 1 ? terms : []).map((name, place) => ({
          label: name.replaceAll("_", " "), of: (row) => row.terms?.[name], stroke: TERMS[place % TERMS.length], width: 1.5, dash: place < TERMS.length ? undefined : [5, 4],
        })),
      ],
    },
    {
      label: "learning rate", height: 160, show: number(3),
      lines: [
        { label: "learning rate", of: (row) => row.lr, stroke: "--clean-line" },
        { label: unit === 1 ? "eps" : "eps, in 1/255", of: (row) => row.eps == null ? null : unit * row.eps, stroke: "--robust", scale: "right" },
      ],
    },
    {
      label: "images/s", height: 130, show: (value) => value == null ? "–" : Math.round(value).toLocaleString("en"),
      lines: [{ label: "images per second", of: (row) => row.images_per_second, stroke: "--good" }],
    },
  ].map((panel) => ({ ...panel, lines: panel.lines.filter((line) => rows.some((row) => line.of(row) != null)) }))
    .filter((panel) => panel.lines.length)
}

function draw() {
  const rows = [...epochs.values()].sort((a, b) => a.epoch - b.epoch)
  const wanted = panels(rows)
  const labels = JSON.stringify(wanted.map((panel) => panel.lines.map((line) => line.label)))
  frame.ariaLabel = `Loss and accuracies of ${rows.length} epochs; the numbers are in the table below`
  if (labels !== shown) {
    for (const plot of plots) plot.destroy()
    frame.classList.add("drawn")
    plots = wanted.map((panel, place) => build(panel, wanted, place === wanted.length - 1))
    shown = labels
  }
  wanted.forEach((panel, place) => {
    plots[place].setData([rows.map((row) => row.epoch), ...panel.lines.map((line) => rows.map((row) => line.of(row) ?? null))])
    showLast(plots[place])
  })
}

function build(panel, all, last) {
  const narrow = frame.clientWidth < 420
  const axis = { stroke: colour("--muted"), font: "12px system-ui", labelFont: "12px system-ui", labelSize: 18 }
  const grid = { stroke: colour("--rule"), width: 1 }
  const right = (lines) => lines.some((line) => line.scale === "right")
  const upwards = { range: (_, low, high) => [0, high > 0 ? high * 1.08 : 1] }
  const end = () => Math.max(2, ...[...epochs.values()].map((row) => row.epochs))
  const few = () => epochs.size <= 30 && epochs.size < frame.clientWidth / 20
  const beside = all.some((other) => right(other.lines)) && !right(panel.lines)
  return new uPlot(
    {
      width: frame.clientWidth,
      height: panel.height,
      padding: [10, beside ? (narrow ? 36 : 54) : right(panel.lines) ? 0 : 12, 0, 0],
      scales: {
        x: { time: false, range: () => [1, end()] },
        left: panel.range ? { range: panel.range } : upwards,
        right: upwards,
      },
      series: [
        { label: "epoch", value: (_, value) => value ?? "–" },
        ...panel.lines.map((line) => ({
          scale: "left", width: 2, points: { size: 5, show: few }, spanGaps: true, ...line,
          stroke: colour(line.stroke), value: (_, value) => panel.show(value),
        })),
      ],
      axes: [
        { ...axis, grid, ticks: grid, label: last && !narrow ? "epoch" : undefined, size: 30, labelGap: 0, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000] },
        { ...axis, grid, ticks: grid, scale: "left", label: narrow ? undefined : panel.label, size: 52, space: 26, values: panel.ticks ? (_, values) => values.map(panel.ticks) : undefined },
        { ...axis, grid: { show: false }, ticks: grid, scale: "right", side: 1, label: narrow ? undefined : "eps", size: 44, space: 26, show: right(panel.lines) },
      ],
      legend: { markers: { dash: (plot, line) => (plot.series[line].dash ? "dashed" : "solid") } },
      cursor: { y: false, sync: { key: "epochs" } },
      hooks: { setCursor: [(plot) => { if (plot.cursor.idx == null) showLast(plot) }] },
      pxAlign: false,
    },
    [[], ...panel.lines.map(() => [])],
    frame,
  )
}

// Without a pointer on it, a legend tells the newest epoch.
function showLast(plot) {
  if (plot.data[0].length) plot.setLegend({ idx: plot.data[0].length - 1 }, false)
}

function redrawAll() {
  if (!plots.length) return
  shown = ""
  draw()
}

if (frame) {
  const fit = () => plots.forEach((plot) => plot.setSize({ width: frame.clientWidth, height: plot.height }))
  new ResizeObserver(fit).observe(frame)
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll)
}

// --- the stream -------------------------------------------------------------------------------------------

let source = null
let live = "liveJob" in job.dataset

function listen() {
  source = new EventSource(job.dataset.events)
  for (const kind of ["status", "started", "joined", "left", "adjusted", "batch", "corruption", "finished", "progress"]) source.addEventListener(kind, news)
  source.addEventListener("epoch", (event) => {
    const epoch = JSON.parse(event.data)
    epochs.set(epoch.epoch, epoch)
    if (frame) requestDraw()
    news()
  })
  source.addEventListener("end", () => {
    source.close()
    source = null
    if (live) refreshing = refreshing.then(refresh)
    live = false
  })
  source.addEventListener("error", () => {
    if (source?.readyState !== EventSource.CLOSED) return // the browser connects again by itself
    stop()
    setTimeout(() => { if (live && !document.hidden && !source) listen() }, 5000)
  })
}

function news() {
  if (live) refreshSoon()
}

// While it waits nothing happens to it, but its place in the queue changes, and so do the workers.
setInterval(() => {
  if (live && !document.hidden && document.querySelector("#state .chip.queued")) refreshSoon()
}, 3000)

let drawing = false
function requestDraw() {
  if (drawing) return
  drawing = true
  requestAnimationFrame(() => { drawing = false; draw() })
}

function stop() {
  source?.close()
  source = null
}

// A browser grants a host six connections: a page that nobody looks at gives its own back.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) stop()
  else if (live && !source) listen()
})

if (live || frame) listen()
