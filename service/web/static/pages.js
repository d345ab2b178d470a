// What htmx leaves to us on the leaderboard and the list of jobs.

// A page that nobody looks at asks for nothing; htmx asks again as soon as it is looked at.
document.addEventListener("htmx:config:request", (event) => {
  const cause = event.detail.ctx.sourceEvent?.type
  if (document.hidden && (cause === "every" || cause === "visibilitychange")) event.preventDefault()
})

const stale = document.getElementById("stale")
document.addEventListener("htmx:error", () => { stale.hidden = false })
document.addEventListener("htmx:after:request", (event) => { stale.hidden = event.detail.ctx.response.status < 400 })
