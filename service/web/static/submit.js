// The server says what is wrong, in the panel; here it is put at the fields, and changed fields are marked.

const form = document.getElementById("draft")
const check = document.getElementById("check")
const submit = document.getElementById("submit")

// --- what differs from the recipe -------------------------------------------------------------------------

const stands = (control) => (control.type === "checkbox" ? String(control.checked) : control.value)

function markChanges() {
  if (!form.hasAttribute("data-named")) return // an import differs from nothing
  for (const field of form.querySelectorAll(".field")) {
    const own = [...field.querySelectorAll("[data-base]")].filter((control) => control.closest(".field") === field)
    field.classList.toggle("changed", own.some((control) => stands(control) !== control.dataset.base))
  }
}

// --- what is wrong ----------------------------------------------------------------------------------------

function placeFaults() {
  for (const fault of form.querySelectorAll(".fault")) fault.textContent = ""
  for (const control of form.querySelectorAll("[aria-invalid]")) control.removeAttribute("aria-invalid")
  for (const told of document.querySelectorAll("#outcome [data-field]")) {
    const place = document.getElementById(`e-${told.dataset.field}`)
    if (!place) continue
    const message = told.lastElementChild.textContent
    place.textContent = place.textContent ? `${place.textContent}; ${message}` : message
    document.getElementById(`i-${told.dataset.field}`)?.setAttribute("aria-invalid", "true")
    for (let box = place.closest("details"); box; box = box.parentElement.closest("details")) box.open = true
  }
}

// --- one form, one job ------------------------------------------------------------------------------------

// Whether it stands otherwise than the page came: a browser that goes back to a page fills it in again.
const isTouched = (control) => control.type === "checkbox"
  ? control.checked !== control.defaultChecked
  : control.options
    ? [...control.options].some((option) => option.selected !== option.defaultSelected)
    : control.value !== control.defaultValue

form.addEventListener("input", markChanges)
document.addEventListener("htmx:after:swap", placeFaults)
check.classList.add("unseen") // it happens by itself; but it stays the button that the Enter key presses
check.tabIndex = -1
form.addEventListener("submit", (event) => {
  if (event.submitter === check) event.preventDefault()
  else submit.disabled = true
})
window.addEventListener("pageshow", () => {
  submit.disabled = false
  const touched = [...form.elements].filter((control) => control.name && isTouched(control))
  if (touched.length) setTimeout(() => form.dispatchEvent(new Event("input"))) // when htmx listens, too
})
