// Before the first paint.
document.documentElement.dataset.theme = localStorage.getItem('enlarger.theme');
