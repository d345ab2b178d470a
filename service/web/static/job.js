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
  for (const details of old.querySelectorAll("details[open][id]")) {
    fresh.querySelector(`#${details.id}`)?.setAttribute("open", "")
  }
  if (!old.isEqualNode(fresh)) old.replaceWith(document.adoptNode(fresh))
}

// --- the training curve -----------------------------------------------------------------------------------

const frame = document.getElementById("curve")
const epochs = new Map() // by number: a replayed stream says nothing new
let plot = null

function colour(name) {
  return () => getComputedStyle(document.documentElement).getPropertyValue(name).trim()
}

function series() {
  const percent = (_, value) => (value == null ? "–" : `${(100 * value).toFixed(2)} %`)
  const line = { width: 2, points: { size: 5 }, spanGaps: true }
  const all = [
    { label: "epoch", value: (_, value) => value ?? "–" },
    { ...line, label: "loss", scale: "loss", stroke: colour("--loss"), dash: [6, 4], value: (_, v) => v?.toFixed(4) ?? "–" },
    { ...line, label: "clean accuracy", scale: "accuracy", stroke: colour("--clean-line"), value: percent },
    { ...line, label: "adversarial accuracy", scale: "accuracy", stroke: colour("--robust"), value: percent },
  ]
  return "adversarial" in frame.dataset ? all : all.slice(0, 3)
}

function columns() {
  const rows = [...epochs.values()].sort((a, b) => a.epoch - b.epoch)
  const all = ["epoch", "loss", "clean_accuracy", "adversarial_accuracy"].map((name) => rows.map((row) => row[name]))
  return "adversarial" in frame.dataset ? all : all.slice(0, 3)
}

function size() {
  return { width: frame.clientWidth, height: Math.max(200, Math.min(320, frame.clientWidth * 0.5)) }
}

function draw() {
  frame.ariaLabel = `Loss and accuracies of ${epochs.size} epochs; the numbers are in the table below`
  if (plot) return plot.setData(columns())
  frame.classList.add("drawn")
  const axis = { stroke: colour("--muted"), font: "12px system-ui", labelFont: "12px system-ui", labelSize: 18 }
  const grid = { stroke: colour("--rule"), width: 1 }
  const narrow = frame.clientWidth < 420
  const last = () => Math.max(2, ...[...epochs.values()].map((row) => row.epochs))
  plot = new uPlot(
    {
      ...size(),
      scales: {
        x: { time: false, range: () => [1, last()] },
        loss: { range: (_, low, high) => [0, high > 0 ? high * 1.08 : 1] },
        accuracy: { range: [0, 1] },
      },
      series: series(),
      axes: [
        { ...axis, grid, ticks: grid, label: narrow ? undefined : "epoch", size: narrow ? 30 : 44, labelGap: -4, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000] },
        { ...axis, grid, ticks: grid, scale: "loss", label: narrow ? undefined : "loss", size: 46 },
        {
          ...axis, grid: { show: false }, ticks: grid, scale: "accuracy", side: 1, label: narrow ? undefined : "accuracy, %",
          size: 40, values: (_, values) => values.map((value) => Math.round(100 * value)),
        },
      ],
      cursor: { y: false },
      pxAlign: false,
    },
    columns(),
    frame,
  )
  new ResizeObserver(() => plot.setSize(size())).observe(frame)
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plot.redraw())
}

// --- the stream -------------------------------------------------------------------------------------------

let source = null
let live = "liveJob" in job.dataset

function listen() {
  source = new EventSource(job.dataset.events)
  for (const kind of ["status", "started", "batch", "corruption", "finished", "progress"]) source.addEventListener(kind, news)
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
