// What htmx leaves to us on pages whose parts it renews.

// On a slow line people type before the scripts are there, and a browser fills in again what was typed before.
setTimeout(() => { // after htmx, which begins in the same way
  for (const field of document.querySelectorAll("main input:not([type=checkbox], [type=radio], [type=file])")) {
    if (field.value !== field.defaultValue) field.dispatchEvent(new Event("input", { bubbles: true }))
  }
})

// A page that nobody looks at asks for nothing; htmx asks again as soon as it is looked at.
document.addEventListener("htmx:config:request", (event) => {
  const cause = event.detail.ctx.sourceEvent?.type
  if (document.hidden && (cause === "every" || cause === "visibilitychange")) event.preventDefault()
})

const stale = document.getElementById("stale")
document.addEventListener("htmx:error", () => { stale.hidden = false })
document.addEventListener("htmx:after:request", (event) => { stale.hidden = event.detail.ctx.response.status < 400 })
